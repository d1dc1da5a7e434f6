"""How much an attack finds out: area under the ROC curve, balanced accuracy, true-positive rates at low false ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from condensate.errors import UserError
from condensate.privacy.membership import check_members
from condensate.streams import Streams

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

USUAL_FPRS = (0.01, 0.001)
FALSE_POSITIVES = 10  # at the least, for a rate to be reported
MOST_POINTS = 1000


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Leakage:
    """What an attack finds out, all scores of all targets taken together.

    Attributes:
        auc: Area under the ROC curve, 0..1: 0.5 where nothing is found out.
        balanced_accuracy: Mean of the shares of members and of others that are told right, 0..1.
        tpr: By false-positive rate, the share of members found at no more than that rate of others taken for members.
        targets: How many shadows were attacked, T.
        members: How many of the scores are those of members.
        others: How many are not.
    """

    auc: Estimate
    balanced_accuracy: Estimate
    tpr: dict[float, Estimate]
    targets: int
    members: int
    others: int


def measure(
    scores: Floats,
    members: NDArray[np.bool_],
    *,
    streams: Streams,
    fprs: Sequence[float] | None = None,
    resamples: int = 1000,
) -> Leakage:
    """The leakage that an attack's scores show, with 95 % percentile intervals by bootstrap.

    Low false-positive rates are what matters for the one person found (Carlini et al., S&P 2022, section III,
    https://arxiv.org/abs/2112.03570); a rate needs the scores of at least ten non-members beyond its threshold. For
    the balanced accuracy, the threshold of a target is the best one for the other targets but its complement, never
    its own best, and is kept in the bootstrap.

    The bootstrap draws pairs of targets and, independently, images, both with replacement (Owen, "The pigeonhole
    bootstrap", Annals of Applied Statistics 2007, https://arxiv.org/abs/0712.1111). Targets alone will not do: they
    are each other's shadows and share the pool, so ``lira``'s intervals would hold the truth in 50 % to 80 % of cases,
    not in 95 %, and complements err in opposite directions, so ``threshold``'s would be twice as wide as need be. Both
    together are rather too wide than too narrow.

    Args:
        scores: Higher for what is rather a member, (T, n).
        members: In complementary pairs, as ``draw_members`` makes them, (T, n).
        streams: Resampling draws from the stream ("bootstrap",).
        fprs: False-positive rates, above 0 and below 1. None: those of 1 % and 0.1 % that there are scores enough for.
        resamples: How many times pairs and images are drawn anew.

    Raises:
        UserError: If a rate asked for needs more scores than there are; see also ``check_members``.
    """
    check_members(scores, members)
    curve = _Curve(scores, members)
    check_rates(fprs, members)
    if fprs is None:
        fprs = [fpr for fpr in USUAL_FPRS if _needed(fpr) <= curve.others]
    right = _told_right(scores, members, curve)
    sides = [((right & side).astype(np.float64), side.astype(np.float64)) for side in (members, ~members)]

    def everything(targets: Counts, images: Counts) -> list[float]:
        found, wrong = curve.counts(targets, images)
        weights = targets.astype(np.float64), images.astype(np.float64)  # whole numbers, far below 2**53: exact
        shares = [(weights[0] @ told @ weights[1]) / (weights[0] @ side @ weights[1]) for told, side in sides]
        return [_area(found, wrong), float(sum(shares)) / 2, *(_rate(found, wrong, fpr) for fpr in fprs)]

    generator = streams("bootstrap")
    pairs, images = len(members) // 2, members.shape[1]
    table = [everything(_drawn(pairs, generator).repeat(2), _drawn(images, generator)) for _ in range(resamples)]
    lows, highs = np.quantile(np.array(table), [0.025, 0.975], axis=0).tolist()
    values = everything(*(np.ones(size, dtype=np.int64) for size in members.shape))
    auc, accuracy, *rates = map(Estimate, values, lows, highs)
    return Leakage(auc, accuracy, dict(zip(fprs, rates)), len(members), int(members.sum()), curve.others)


def check_rates(fprs: Sequence[float] | None, members: NDArray[np.bool_]) -> None:
    """Refuse false-positive rates for which there will be too few scores.

    Args:
        fprs: As for ``measure``.
        members: (T, n).

    Raises:
        UserError: If a rate is not above 0 and below 1, or fewer than ten non-members' scores would lie beyond it.
    """
    others = int((~members).sum())
    for fpr in fprs or ():
        if not 0 < fpr < 1:
            raise UserError(f"a false-positive rate must be above 0 and below 1, got {fpr:g}")
        if others < _needed(fpr):
            enough = 2 * math.ceil(_needed(fpr) / members.shape[1])
            raise UserError(
                f"a false-positive rate of {fpr:g} needs the scores of {_needed(fpr):,} non-members, got {others:,}; "
                f"{enough} shadows of this pool would do, in place of {len(members)}"
            )


def among_nearest(
    scores: Floats,
    members: Sequence[Counts],
    others: Sequence[Counts],
    streams: Streams,
    resamples: int = 1000,
) -> Estimate:
    """Area under the ROC curve among the images that synthetic ones lie nearest to, where a leak would show first.

    Members nearest to a synthetic image against others nearest to one: chosen alike, so that 0.5 is what guessing
    gives. Over the whole pool a set that holds ten images as they are looks harmless; here it does not. 95 % interval
    by the bootstrap of ``measure``: the same few images may lie nearest in every shadow, so images are drawn, too.

    Args:
        scores: Of an attack, (T, n).
        members: Of every shadow, the indices of its members that are nearest to one of its synthetic images.
        others: Likewise of images that are not its members.
        streams: Resampling draws from the stream ("bootstrap", "nearest").
        resamples: How many times pairs and images are drawn anew; draws in which one side is empty count for nothing.
    """
    nearest = np.zeros((2, *scores.shape), dtype=np.bool_)
    for target, sides in enumerate(zip(members, others, strict=True)):
        for side, index in zip(nearest, sides):
            side[target, index] = True
    curve = _Curve(scores, nearest[0], nearest[0] | nearest[1])

    def area(targets: Counts, images: Counts) -> float:
        return _area(*curve.counts(targets, images))

    generator = streams("bootstrap", "nearest")
    pairs, images = len(scores) // 2, scores.shape[1]
    drawn = [area(_drawn(pairs, generator).repeat(2), _drawn(images, generator)) for _ in range(resamples)]
    low, high = np.nanquantile(drawn, [0.025, 0.975]).tolist()
    return Estimate(area(*(np.ones(size, dtype=np.int64) for size in scores.shape)), low, high)


def roc(scores: Floats, members: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The ROC curve of all scores together, to be drawn: false- and true-positive rates (p,), both rising from 0 to 1.

    Thinned to at most a thousand of the curve's own points, close together at low rates.

    Args:
        scores: Higher for what is rather a member, of any shape.
        members: Of the same shape.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(members.ravel(), scores.ravel(), drop_intermediate=False)
    others = int((~members).sum())
    wanted = np.concatenate([np.geomspace(1 / others, 1, MOST_POINTS // 2), np.linspace(0, 1, MOST_POINTS // 2 - 1)])
    kept = np.unique([0, *(np.searchsorted(fpr, wanted * (1 + 1e-12), side="right") - 1)])
    return fpr[kept], tpr[kept]


class _Curve:
    """Scores sorted once, so that the curve under any weights of targets and images is two cumulative sums.

    Args:
        scores: (T, n).
        members: (T, n).
        among: Which of them to take, (T, n); None for all.
    """

    def __init__(self, scores: Floats, members: NDArray[np.bool_], among: NDArray[np.bool_] | None = None) -> None:
        order = np.argsort(-scores.ravel(), kind="stable")
        if among is not None:
            order = order[among.ravel()[order]]
        self.sorted = scores.ravel()[order]
        self.ends = np.append(np.flatnonzero(np.diff(self.sorted)), len(order) - 1)  # of runs of equal scores
        self.target, self.image = np.divmod(order, scores.shape[1])
        self.member = members.ravel()[order]
        self.others = int((~self.member).sum())

    def counts(self, targets: Counts, images: Counts) -> tuple[Counts, Counts]:
        """Members and others at or above each distinct score, from the highest on; weights are (T,) and (n,)."""
        each = targets[self.target] * images[self.image]
        every, found = np.cumsum(each)[self.ends], np.cumsum(each * self.member)[self.ends]
        return found, every - found

    def best(self, targets: Counts, images: Counts) -> float:
        """The least score to be called a member's, for the highest balanced accuracy under these weights."""
        found, wrong = self.counts(targets, images)
        return float(self.sorted[self.ends[np.argmax(found / found[-1] - wrong / wrong[-1])]])


def _told_right(scores: Floats, members: NDArray[np.bool_], curve: _Curve) -> NDArray[np.bool_]:
    """Whether a target's threshold tells right whether an image is its member, (T, n)."""
    cuts = []
    for pair in range(0, len(members), 2):
        targets = np.ones(len(members), dtype=np.int64)
        targets[pair : pair + 2] = 0
        cuts.append(curve.best(targets, np.ones(members.shape[1], dtype=np.int64)))
    return (scores >= np.repeat(cuts, 2)[:, None]) == members


def _drawn(size: int, generator: torch.Generator) -> Counts:
    """How often each of ``size`` things comes in as many draws with replacement."""
    drawn = torch.randint(size, (size,), generator=generator, device=generator.device)
    return np.bincount(drawn.cpu().numpy(), minlength=size)


def _area(found: Counts, wrong: Counts) -> float:
    """Under the curve by trapezia, so that a member and another of equal scores count half; nan with an empty side."""
    heights, widths = found.copy(), wrong.copy()
    heights[1:] += found[:-1]
    widths[1:] -= wrong[:-1]
    every = 2 * found[-1] * wrong[-1]
    return float(heights @ widths / every) if every else math.nan


def _rate(found: Counts, wrong: Counts, fpr: float) -> float:
    """Highest true-positive rate at a false-positive rate of ``fpr`` at the most."""
    allowed = np.searchsorted(wrong, fpr * wrong[-1] * (1 + 1e-12), side="right")
    return float(found[allowed - 1] / found[-1]) if allowed else 0.0


def _needed(fpr: float) -> int:
    return math.ceil(FALSE_POSITIVES / fpr * (1 - 1e-12))
