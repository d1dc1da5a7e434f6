"""What is measured of continual learning."""

from collections.abc import Sequence
from statistics import mean

Matrix = Sequence[Sequence[float]]


def average_incremental_accuracy(seen: Sequence[float]) -> float:
    """Mean over steps of the accuracy on the classes seen (Rebuffi et al., "iCaRL", CVPR 2017)."""
    return mean(seen)


def forgetting(matrix: Matrix) -> float | None:
    """Mean over all experiences but the last of their best accuracy at an earlier step minus that at the end.

    Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018, equation 13 (not bounded below by 0).
    None where there is one experience only.
    """
    last = len(matrix) - 1
    if not last:
        return None
    lost = [max(matrix[step][old] for step in range(old, last)) - matrix[last][old] for old in range(last)]
    return mean(lost)
