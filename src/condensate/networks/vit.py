"""A small vision transformer."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from condensate.errors import UserError
from condensate.networks.base import Network, Shape


class ViT(Network):
    """Patches as tokens, transformer blocks, the mean token, then a linear classifier.

    Dosovitskiy et al., ICLR 2021, without class token and with normalisation before each part of a block, as in Beyer
    et al., "Better plain ViT baselines for ImageNet-1k", 2022, but with learned positions. Images whose sides are no
    multiple of the patch get zeros at their right and lower borders.

    Args:
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        width: Of a token.
        depth: Number of blocks.
        heads: Of attention; they divide the width.
        patch: Side of a patch.
    """

    def __init__(
        self, shape: Shape, classes: int, *, width: int = 128, depth: int = 6, heads: int = 4, patch: int = 4
    ) -> None:
        super().__init__()
        if min(width, depth, heads, patch) < 1:
            raise UserError(
                f"a ViT needs width, depth, heads and patch of at least 1, got {width}, {depth}, {heads} and {patch}"
            )
        if width % heads:
            raise UserError(f"the width of a ViT must be a multiple of its heads, got {width} and {heads}")
        self.patch = patch
        rows, columns = (-(-side // patch) for side in shape[1:])
        with torch.device("meta"):
            self.embedding = nn.Linear(shape[0] * patch**2, width)
            self.positions = nn.Parameter(torch.empty(rows * columns, width))
            self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
            self.norm = nn.LayerNorm(width)
            self.classifier = nn.Linear(width, classes)
        self.allocate_()

    @torch.no_grad()
    def reset_(self, generator: torch.Generator) -> None:
        """Draw the default initialisation anew, in place; positions are normal of deviation 0.02, as published."""
        super().reset_(generator)
        drawn = torch.empty(self.positions.shape, device=generator.device).normal_(std=0.02, generator=generator)
        self.positions.copy_(drawn)

    def features(self, images: Tensor) -> Tensor:
        """The mean of the last tokens: (n, C, H, W) -> (n, width)."""
        return self.norm(self.blocks(self.embedding(self._patches(images)) + self.positions)).mean(1)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""
        return self.classifier(self.features(images))

    def _patches(self, images: Tensor) -> Tensor:
        """Flattened patches, row by row: (n, C, H, W) -> (n, patches, C * patch * patch)."""
        size = self.patch
        images = pad(images, (0, -images.shape[3] % size, 0, -images.shape[2] % size))
        return (
            images.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        )


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the hidden layer is four times as wide.

    Args:
        width: Of a token.
        heads: Of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, T, width) to tokens."""
        tokens = tokens + self.attention(tokens)
        return tokens + self.mlp(tokens)


class Attention(nn.Module):
    """Each token the mean of all, weighted by softmax(q k' / sqrt(d)) in every head of d numbers.

    Written out, because gradient matching differentiates it twice, which the fused kernels cannot.

    Args:
        width: Of a token.
        heads: Each sees width / heads numbers of every token.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, T, width) to tokens."""
        query, key, value = self.project(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return self.join((weights @ value).transpose(1, 2).flatten(2))
