"""Images stored as they are: one float32 number a pixel and channel."""

from typing import Any

import torch
from torch import Tensor, nn

from condensate.parameterizations.base import FLOAT_BITS, Cost, Parameterization, Shape


class Pixels(Parameterization):
    """Images stored as they are, the storage of DC, DSA, DM and MTT.

    Args:
        n: Number of images.
        shape: Of one image, (C, H, W).
    """

    def __init__(self, n: int, shape: Shape) -> None:
        super().__init__(n, shape)
        self.pixels = nn.Parameter(torch.zeros(n, *shape))

    @torch.no_grad()
    def reset_(self, generator: torch.Generator, pixel_std: float | None = None) -> None:
        """Normal noise; the published standard deviation is 1."""
        self.pixels.normal_(0.0, 1.0 if pixel_std is None else pixel_std, generator=generator)

    @torch.no_grad()
    def encode_(self, images: Tensor) -> None:
        """Take the images themselves, (n, C, H, W)."""
        self.pixels.copy_(self._check_images(images))

    def decode(self, index: Tensor) -> Tensor:
        """Images at ``index``: (k,) -> (k, C, H, W)."""
        return self.pixels[index]

    @classmethod
    def cost(cls, n: int, shape: Shape, **options: Any) -> Cost:
        """One number a pixel and channel."""
        channels, height, width = shape
        numbers = n * channels * height * width
        return Cost(numbers, FLOAT_BITS * numbers)
