"""Where a condensation starts from: noise, or real images chosen one way or another.

With no episode after it, a start from real images is a baseline: random, herding, k-centre.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

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


STARTS: dict[str, Callable[..., Any]] = {"noise": noise, "real": real, "herding": herding, "k-centre": k_centre}
