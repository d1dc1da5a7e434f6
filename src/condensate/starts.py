"""Where a condensation starts from: noise, real images chosen one way or another, or means of groups of them.

With no episode after it, a start from real images is a baseline: random, herding, k-centre.
"""

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

Embed = Callable[[], Callable[[Tensor], Tensor]]


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
    """Centres of clusters of the real images of each class, as close as the storage can hold them."""
    per_class = len(stored) // len(real.counts())
    found = []
    for label, count in enumerate(real.counts().tolist()):
        images = real.images((real.labels == label).nonzero().flatten())
        some = centres(images.flatten(1), min(count, per_class), streams("k-means", label))
        found.append(some.repeat(-(-per_class // len(some)), 1)[:per_class].view(-1, *images.shape[1:]))
    stored.encode_(torch.cat(found))


def centres(points: Tensor, count: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Centres (count, D) of clusters of points (n, D): Lloyd's algorithm, "Least squares quantization in PCM", 1982.

    It begins with points chosen at random; a centre that no point is closest to stays where it is.
    """
    chosen = torch.randperm(len(points), generator=generator, device=generator.device)[:count]
    found = points[chosen.to(points.device)]
    for _ in range(rounds):
        members = one_hot(torch.cdist(points, found).argmin(1), count).to(points.dtype)
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
