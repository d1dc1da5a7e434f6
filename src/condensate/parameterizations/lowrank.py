"""Images stored as products of two thin matrices: the plugin."""

from typing import Any

import torch
from torch import Tensor, nn

from condensate.errors import UserError
from condensate.parameterizations.base import FLOAT_BITS, Cost, Parameterization, Shape


class LowRank(Parameterization):
    """Images stored as products of two thin matrices per channel.

    Image i, channel c is ``a[i, c] @ b[i, c]`` with a of H x rank and b of rank x W, so storage falls from H*W to
    rank*(H + W) a channel and the same budget holds H*W / (rank*(H + W)) times as many images. Nothing is shared
    between channels, images or classes.

    Yang et al., "An Efficient Dataset Condensation Plugin and Its Application to Continual Learning",
    NeurIPS 2023, https://openreview.net/forum?id=Murj6wcjRw

    Args:
        n: Number of images.
        shape: Of one image, (C, H, W).
        rank: Inner dimension, 1 to min(H, W).
    """

    def __init__(self, n: int, shape: Shape, *, rank: int = 2) -> None:
        super().__init__(n, shape)
        channels, height, width = shape
        _check_rank(rank, shape)
        self.rank = rank
        self.a = nn.Parameter(torch.zeros(n, channels, height, rank))
        self.b = nn.Parameter(torch.zeros(n, channels, rank, width))

    @torch.no_grad()
    def reset_(self, generator: torch.Generator, pixel_std: float | None = None) -> None:
        """Normal factors, of variance 1 as published (pixels of variance ``rank``) or to give pixels ``pixel_std``."""
        factor_std = 1.0 if pixel_std is None else pixel_std**0.5 / self.rank**0.25
        self.a.normal_(0.0, factor_std, generator=generator)
        self.b.normal_(0.0, factor_std, generator=generator)

    @torch.no_grad()
    def encode_(self, images: Tensor) -> None:
        """The best rank-r fit to images (n, C, H, W) by least squares (Eckart-Young), a and b of equal scale."""
        u, s, vh = torch.linalg.svd(self._check_images(images), full_matrices=False)
        root = s[..., : self.rank].sqrt()
        self.a.copy_(u[..., : self.rank] * root.unsqueeze(-2))
        self.b.copy_(root.unsqueeze(-1) * vh[..., : self.rank, :])

    def decode(self, index: Tensor) -> Tensor:
        """Images at ``index``: (k,) -> (k, C, H, W)."""
        return self.a[index] @ self.b[index]

    @classmethod
    def cost(cls, n: int, shape: Shape, **options: Any) -> Cost:
        """rank*(H + W) numbers a channel."""
        channels, height, width = shape
        numbers = n * channels * _check_rank(options.get("rank", 2), shape) * (height + width)
        return Cost(numbers, FLOAT_BITS * numbers)

    @classmethod
    def saves_nothing(cls, shape: Shape, **options: Any) -> str | None:
        """A rank of H*W / (H + W) or more takes as many numbers as the pixels do."""
        _, height, width = shape
        rank = _check_rank(options.get("rank", 2), shape)
        if rank * (height + width) < height * width:
            return None
        largest = (height * width - 1) // (height + width)
        remedy = f"the largest rank that helps is {largest}" if largest else "no rank helps: use pixels"
        return f"rank {rank} saves nothing over pixels for {height}x{width} images; {remedy}"


def _check_rank(rank: int, shape: Shape) -> int:
    _, height, width = shape
    if not isinstance(rank, int) or not 1 <= rank <= min(height, width):
        whole = "" if isinstance(rank, int) else " and a whole number"
        raise UserError(f"rank must be in [1, {min(height, width)}]{whole} for {height}x{width} images, got {rank}")
    return rank
