"""What is measured of continual learning."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Curve:
    """Accuracies 0..1 of one memory along one class order.

    Args:
        seen: On all classes seen, after every experience: the share of right answers among all their images.
        matrix: Row i holds the accuracies on experiences 0 to i, each apart, after experience i.
    """

    seen: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]

    @property
    def final(self) -> float:
        """On all classes, after the last experience."""
        return self.seen[-1]


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
