"""The ConvNet that condensation papers match and score on, in all its widths, depths and layers."""

import torch
from torch import Tensor, nn

from condensate.errors import UserError
from condensate.networks.base import (
    ACTIVATIONS,
    POOLINGS,
    Activation,
    FirstConvolution,
    Network,
    Norm,
    Pooling,
    Shape,
    choose,
    first_padding,
    normalisation,
)


class ConvNet(Network):
    """Blocks of convolution, normalisation, activation and pooling, then a linear classifier.

    Gidaris & Komodakis, CVPR 2018, as every condensation paper since Zhao et al., ICLR 2021, uses it: 3x3
    convolutions, the first of padding 3 for gray 28x28 images, which makes them 32x32. "Instance" normalisation is
    group normalisation with one channel a group, affine.

    Args:
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        width: Channels of every block.
        depth: Number of blocks.
        activation: A key of ``ACTIVATIONS``.
        norm: A key of ``NORMS``.
        pooling: A key of ``POOLINGS``; "avg" and "max" halve the image in every block.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        *,
        width: int = 128,
        depth: int = 3,
        activation: Activation = "relu",
        norm: Norm = "instance",
        pooling: Pooling = "avg",
    ) -> None:
        super().__init__()
        channels, height, columns = shape
        if width < 1 or depth < 1:
            raise UserError(f"a ConvNet needs width and depth of at least 1, got {width} and {depth}")
        if norm == "group" and width % 4:
            raise UserError(f"group normalisation has 4 groups: the width must be a multiple of 4, got {width}")
        padding = first_padding(shape, 1)
        height, columns = height + 2 * padding - 2, columns + 2 * padding - 2
        blocks: list[nn.Module] = []
        with torch.device("meta"):
            for block in range(depth):
                pool = choose(POOLINGS, pooling, "pooling")()
                if pooling != "none" and min(height, columns) < 2:
                    remedy = f"the largest depth is {block}" if block else "use --network.pooling none"
                    raise UserError(
                        f"a {shape[1]}x{shape[2]} image is too small for depth {depth}: "
                        f"it vanishes in block {block + 1}; {remedy}"
                    )
                blocks += [
                    nn.Conv2d(width, width, 3, padding=1)
                    if block
                    else FirstConvolution(channels, width, 3, padding=padding),
                    normalisation(norm, (width, height, columns), shape),
                    choose(ACTIVATIONS, activation, "activation")(),
                    pool,
                ]
                if pooling != "none":
                    height, columns = height // 2, columns // 2
            self.blocks = nn.Sequential(*blocks)
            self.classifier = nn.Linear(width * height * columns, classes)
        self.allocate_()

    def features(self, images: Tensor) -> Tensor:
        """The flattened output of the last block: (n, C, H, W) -> (n, width * h * w)."""
        return self.blocks(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""
        return self.classifier(self.features(images))
