"""VGG11."""

import torch
from torch import Tensor, nn

from condensate.networks.base import Network, Norm, Shape, first_padding, normalisation


class VGG11(Network):
    """Eight 3x3 convolutions, each with normalisation and ReLU, five max-poolings, then a linear classifier.

    Simonyan & Zisserman, ICLR 2015, configuration A, with one linear layer as condensation papers use it; the first
    convolution of padding 3 for gray 28x28 images, which makes them 32x32. Pooling keeps an odd last row and column,
    so no image vanishes.

    Args:
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        norm: After each convolution, a key of ``NORMS``; published are "instance" and "batch".
    """

    def __init__(self, shape: Shape, classes: int, *, norm: Norm = "instance") -> None:
        super().__init__()
        channels, height, columns = shape
        padding = first_padding(shape, 1)
        height, columns = height + 2 * padding - 2, columns + 2 * padding - 2
        layers: list[nn.Module] = []
        with torch.device("meta"):
            for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
                for width in stage:
                    layers += [
                        nn.Conv2d(channels, width, 3, padding=1 if layers else padding),
                        normalisation(norm, (width, height, columns), shape),
                        nn.ReLU(),
                    ]
                    channels = width
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                height, columns = (height + 1) // 2, (columns + 1) // 2
            self.convolutions = nn.Sequential(*layers)
            self.classifier = nn.Linear(channels * height * columns, classes)
        self.allocate_()

    def features(self, images: Tensor) -> Tensor:
        """The flattened last maps: (n, C, H, W) -> (n, 512 * h * w)."""
        return self.convolutions(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""
        return self.classifier(self.features(images))
