"""Where a condensation starts from: noise, real images chosen one way or another, or means of groups of them.

With no episode after it, a start from real images is a baseline: random, herding, k-centre.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from condensate import coresets
from condensate.data import Split
from condensate.errors import UserError
from condensate.parameterizations import Parameterization
from condensate.streams import Streams
from condensate.training import scored_at_once

Embed = Callable[[], Callable[[Tensor], Tensor]]

CLUSTERED_BYTES = 2**26  # of the pixels of a class, in float32; of a larger class as many random images are clustered


def noise(
    stored: Parameterization, real: Split, embed: Embed, streams: Streams, *, pixel_std: float | None = None
) -> None:
    """Noise.

    Args:
        stored: Filled in place.
        real: Not used.
        embed: Not used.
        streams: Source of the noise.
        pixel_std: Standard deviation of the pixels; null for the published noise of the storage.
    """
    if pixel_std is not None and not pixel_std > 0:
        raise UserError(f"start.pixel_std must be above 0, got {pixel_std}")
    stored.reset_(streams("start"), pixel_std)


def real(stored: Parameterization, real: Split, embed: Embed, streams: Streams) -> None:
    """Real images, chosen at random, as close as the storage can hold them."""
    stored.encode_(real.images(coresets.random(real, len(stored) // len(real.counts()), streams)))


def herding(stored: Parameterization, real: Split, embed: Embed, streams: Streams) -> None:
    """Real images whose mean feature is close to that of their class."""
    stored.encode_(real.images(coresets.herding(real, len(stored) // len(real.counts()), embed())))


def k_centre(stored: Parameterization, real: Split, embed: Embed, streams: Streams) -> None:
    """Real images to which every other of their class is close."""
    stored.encode_(real.images(coresets.k_centre(real, len(stored) // len(real.counts()), embed())))


def k_means(stored: Parameterization, real: Split, embed: Embed, streams: Streams) -> None:
    """Centres of clusters of the real images of each class, as close as the storage can hold them.

    Of a class of more than ``CLUSTERED_BYTES`` of pixels, so many random images are clustered.
    """
    per_class = len(stored) // len(real.counts())
    most = max(per_class, CLUSTERED_BYTES // (4 * math.prod(real.shape)))
    found = []
    for label, count in enumerate(real.counts().tolist()):
        draws = streams("k-means", label)
        index = real.sample(label, most, draws) if count > most else (real.labels == label).nonzero().flatten()
        some = centres(_pixels(real, index), min(count, per_class), draws)
        found.append(some.repeat(-(-per_class // len(some)), 1)[:per_class].view(-1, *real.shape))
    stored.encode_(torch.cat(found))


def _pixels(real: Split, index: Tensor) -> Tensor:
    """Images at ``index`` (k,) as points (k, C * H * W), read a few at a time."""
    points = torch.empty(len(index), math.prod(real.shape), device=real.device)
    parts = index.split(scored_at_once(real.shape, real.device))
    real.expect(parts)
    for part, place in zip(parts, points.split(len(parts[0])), strict=True):
        place.copy_(real.images(part).flatten(1))
    return points


def centres(points: Tensor, count: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Centres (count, D) of clusters of points (n, D): Lloyd's algorithm, "Least squares quantization in PCM", 1982.

    It begins with points chosen at random; a centre that no point is closest to stays where it is.
    """
    chosen = torch.randperm(len(points), generator=generator, device=generator.device)[:count]
    found = points[chosen.to(points.device)]
    for _ in range(rounds):
        closest = (found.square().sum(1) - 2 * (points @ found.T)).argmin(1)  # a point's own length is the same to all
        members = one_hot(closest, count).to(points.dtype)
        sizes = members.sum(0)[:, None]
        found = torch.where(sizes > 0, members.T @ points / sizes.clamp(min=1), found)
    return found


STARTS: dict[str, Callable[..., Any]] = {
    "noise": noise,
    "real": real,
    "herding": herding,
    "k-centre": k_centre,
    "k-means": k_means,
}
