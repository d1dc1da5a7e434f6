"""Real images at one byte a value, the storage every other one must be compared with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condensate.errors import UserError
from condensate.parameterizations.base import Cost, Parameterization, Shape


class Uint8(Parameterization):
    """Images at one byte a value, as image files hold them: four times as many in the bytes of float32 pixels.

    It has nothing to optimise: it holds real images, for comparison. The normalisation is a constant of the data
    set, known to every user of the images, and is not counted. Of whitened data it holds the pixels as well, to be
    whitened when they are read.

    Args:
        n: Number of images.
        shape: Of one image, (C, H, W).
        mean: Per channel, of the normalisation that decoded images are in; pixels scaled to 0..1.
        std: Likewise.
    """

    values: Tensor

    def __init__(self, n: int, shape: Shape, *, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        super().__init__(n, shape)
        if len(mean) not in (1, shape[0]) or len(std) != len(mean):
            raise UserError(f"mean and std must have 1 or {shape[0]} values, got {len(mean)} and {len(std)}")
        self.mean, self.std = tuple(mean), tuple(std)
        self.register_buffer("values", torch.zeros(n, *shape, dtype=torch.uint8))

    @property
    def holds_pixels(self) -> bool:
        """Where the bytes are not normalised."""
        return not any(self.mean) and set(self.std) == {1.0}

    def reset_(self, generator: torch.Generator, pixel_std: float | None = None) -> None:
        """Uniform over the bytes."""
        self.values.random_(0, 256, generator=generator)

    def encode_(self, images: Tensor) -> None:
        """The nearest byte of every value of images (n, C, H, W)."""
        mean, std = self._normalisation(images)
        self.values.copy_(((self._check_images(images) * std + mean) * 255).round().clamp(0, 255))

    def decode(self, index: Tensor) -> Tensor:
        """Images at ``index``, normalised: (k,) -> (k, C, H, W)."""
        values = self.values[index].float()
        mean, std = self._normalisation(values)
        return (values / 255 - mean) / std

    @classmethod
    def cost(cls, n: int, shape: Shape, **options: Any) -> Cost:
        """One byte a value."""
        channels, height, width = shape
        numbers = n * channels * height * width
        return Cost(numbers, 8 * numbers)

    def _normalisation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.mean).view(-1, 1, 1), like.new_tensor(self.std).view(-1, 1, 1)
