"""ResNet18."""

from typing import Literal

import torch
from torch import Tensor, nn

from condensate.errors import UserError, unknown
from condensate.networks.base import AveragePool, Network, Norm, Shape, normalisation


class ResNet18(Network):
    """A 3x3 convolution and eight residual blocks, 64 to 512 channels wide, then a linear classifier.

    He et al., CVPR 2016, for small images as condensation papers use it. With pooling "stride" the first blocks of
    the last three stages have stride 2, and the last maps are averaged whole (published: by 4, which is the same at
    28 and 32 pixels). With "avg" (ResNet18_AP of Zhao & Bilen, ICML 2021) those blocks average by two in place of the
    stride, and the last maps are not averaged.

    Args:
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        norm: After each convolution, a key of ``NORMS``; published are "instance" and "batch".
        pooling: How the maps are halved, "stride" or "avg".
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        *,
        norm: Norm = "instance",
        pooling: Literal["stride", "avg"] = "stride",
    ) -> None:
        super().__init__()
        if pooling not in ("stride", "avg"):
            raise unknown("pooling", pooling, ("stride", "avg"))
        maps: Shape = (64, shape[1], shape[2])
        blocks: list[nn.Module] = []
        with torch.device("meta"):
            stem = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
            for width in (64, 64, 128, 128, 256, 256, 512, 512):
                changes = width != maps[0]
                after = (width, _halved(maps[1], pooling), _halved(maps[2], pooling)) if changes else maps
                if min(after) < 1:
                    raise UserError(
                        f"a {shape[1]}x{shape[2]} image is too small for ResNet18 with average pooling, which needs "
                        "8x8; use --network.pooling stride, or larger images: --data.size 32"
                    )
                blocks.append(ResidualBlock(maps, after, norm=norm, pooling=pooling, image=shape))
                maps = after
            self.stem = nn.Sequential(stem, normalisation(norm, (64, shape[1], shape[2]), shape), nn.ReLU())
            self.blocks = nn.Sequential(*blocks)
            self.pool = nn.AdaptiveAvgPool2d(1) if pooling == "stride" else nn.Identity()
            self.classifier = nn.Linear(maps[0] * (1 if pooling == "stride" else maps[1] * maps[2]), classes)
        self.allocate_()

    def features(self, images: Tensor) -> Tensor:
        """The last maps, averaged or flattened: (n, C, H, W) -> (n, 512), with "avg" (n, 512 * h * w)."""
        return self.pool(self.blocks(self.stem(images))).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""
        return self.classifier(self.features(images))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the maps change: relu(f(x) + s(x)).

    Args:
        before: Shape of the maps that come, (C, H, W).
        after: Of those that go; another width than ``before`` has means half its sides.
        norm: A key of ``NORMS``.
        pooling: How the sides are halved: "stride" of the first and the shortcut's convolution, or "avg" pooling
            after the first ReLU and the shortcut's convolution.
        image: Shape of the network's images.
    """

    def __init__(self, before: Shape, after: Shape, *, norm: str, pooling: str, image: Shape) -> None:
        super().__init__()
        changes = before[0] != after[0]
        stride = 2 if changes and pooling == "stride" else 1
        pools = [AveragePool()] if changes and pooling == "avg" else []
        between = (after[0], *before[1:]) if pools else after
        self.residual = nn.Sequential(
            nn.Conv2d(before[0], after[0], 3, stride, padding=1, bias=False),
            normalisation(norm, between, image),
            nn.ReLU(),
            *pools,
            nn.Conv2d(after[0], after[0], 3, padding=1, bias=False),
            normalisation(norm, after, image),
        )
        convolution = nn.Conv2d(before[0], after[0], 1, stride, bias=False)
        self.shortcut = (
            nn.Sequential(convolution, *pools, normalisation(norm, after, image)) if changes else nn.Identity()
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (n, C, H, W) to maps."""
        return (self.residual(maps) + self.shortcut(maps)).relu()


def _halved(side: int, pooling: str) -> int:
    """A side after stride 2 keeps its odd last row, pooling drops it."""
    return (side + 1) // 2 if pooling == "stride" else side // 2
