"""Synthetic images that lie closer to the images they were condensed from than to others of the same kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condensate.errors import UserError
from condensate.privacy.curves import Estimate
from condensate.streams import Streams

HELD_VALUES = 2**24
CANDIDATES = 8


@dataclass(frozen=True)
class Nearness:
    """Euclidean distances of synthetic images to the nearest of as many members as non-members.

    Attributes:
        to_member: Of each synthetic image to the nearest image it may have been made from, (m,).
        to_other: To the nearest of the same number of images it was not made from, (m,).
        member: Which of the members that is, (m,).
        other: Which of the non-members, (m,).
    """

    to_member: Tensor
    to_other: Tensor
    member: Tensor
    other: Tensor

    @property
    def share(self) -> float:
        """Share of synthetic images closer to a member than to any non-member, ties by half; 0.5: nothing memorised."""
        closer = (self.to_member < self.to_other).double() + (self.to_member == self.to_other).double() / 2
        return float(closer.mean())


def nearest(queries: Tensor, reals: Tensor) -> tuple[Tensor, Tensor]:
    """The real image nearest to each query, by Euclidean distance.

    Norms and products find a few candidates, fast; which of those is nearest, and how far, is told from differences,
    for products lose the small distances that matter here: of an image to itself the distance is 0. In the precision
    of the arguments, a part of the queries at a time.

    Args:
        queries: (m, D).
        reals: (n, D), at least one.

    Returns:
        Distances (m,) and indices into ``reals`` (m,).

    Raises:
        UserError: If there are no real images, or their size is not that of the queries.
    """
    if queries.ndim != 2 or reals.ndim != 2 or queries.shape[1] != reals.shape[1] or not len(reals):
        raise UserError(
            f"expected queries (m, D) and at least one real image (n, D), got {tuple(queries.shape)} and "
            f"{tuple(reals.shape)}; flatten images of one size"
        )
    few, distances, indices = min(CANDIDATES, len(reals)), [], []
    for part in queries.split(max(1, HELD_VALUES // max(len(reals), few * reals.shape[1]))):
        rough = torch.cdist(part, reals, compute_mode="use_mm_for_euclid_dist")
        candidates = rough.topk(few, largest=False).indices.sort(1).values
        exact = (part[:, None] - reals[candidates]).norm(dim=2).min(1)
        distances.append(exact.values)
        indices.append(candidates.gather(1, exact.indices[:, None])[:, 0])
    return torch.cat(distances), torch.cat(indices)


def nearness(synthetic: Tensor, members: Tensor, others: Tensor, generator: torch.Generator) -> Nearness:
    """Distances of synthetic images to members and to non-members, of which the more numerous are thinned by a draw.

    The more images there are, the nearer the nearest one; so there must be as many of the one kind as of the other.

    Args:
        synthetic: Decoded images (m, D), m at least one.
        members: What they were condensed from, (a, D).
        others: Real images that were not used, (b, D).
        generator: Draws which images stay, where a and b differ.

    Raises:
        UserError: See ``nearest``.
    """
    count = min(len(members), len(others))
    kept = [torch.arange(count), torch.arange(count)]
    for side, images in enumerate((members, others)):
        if len(images) > count:
            kept[side] = torch.randperm(len(images), generator=generator, device=generator.device)[:count].cpu()
    distances, index = zip(*(nearest(synthetic, real[i.to(real.device)]) for real, i in zip((members, others), kept)))
    return Nearness(*distances, *(i.to(at.device)[at] for i, at in zip(kept, index)))


def share(parts: Sequence[Nearness], streams: Streams, resamples: int = 1000) -> Estimate:
    """``Nearness.share``, mean over the sets of several shadows, with a 95 % interval by bootstrap over shadows.

    Args:
        parts: One a shadow, at least one.
        streams: Resampling draws from the stream ("bootstrap", "share").
        resamples: How many times shadows are drawn anew.
    """
    shares = np.array([part.share for part in parts])
    generator = streams("bootstrap", "share")
    drawn = torch.randint(len(parts), (resamples, len(parts)), generator=generator, device=generator.device)
    low, high = np.quantile(shares[drawn.cpu().numpy()].mean(1), [0.025, 0.975])
    return Estimate(float(shares.mean()), float(low), float(high))
