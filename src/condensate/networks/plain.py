"""Plain networks: MLP, LeNet, AlexNet."""

import torch
from torch import Tensor, nn

from condensate.errors import UserError
from condensate.networks.base import Network, Norm, Shape, first_padding, normalisation


class MLP(Network):
    """Two hidden layers with ReLU on the flattened image, then a linear classifier.

    Args:
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        width: Of both hidden layers.
    """

    def __init__(self, shape: Shape, classes: int, *, width: int = 128) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"an MLP needs a width of at least 1, got {width}")
        with torch.device("meta"):
            self.hidden = nn.Sequential(
                nn.Linear(shape[0] * shape[1] * shape[2], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
            )
            self.classifier = nn.Linear(width, classes)
        self.allocate_()

    def features(self, images: Tensor) -> Tensor:
        """The second hidden layer: (n, C, H, W) -> (n, width)."""
        return self.hidden(images.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""
        return self.classifier(self.features(images))


class LeNet(Network):
    """Two 5x5 convolutions, each with ReLU and max-pooling, and three linear layers.

    LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998, with ReLU and
    max-pooling as condensation papers use it; padding 2 for gray 28x28 images, else none. Pooling keeps an odd last
    row and column.

    Args:
        shape: Of one image, (C, H, W).
        classes: Number of classes.
    """

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        padding = first_padding(shape, 0)
        height, columns = (_halved(_halved(side + 2 * padding - 4) - 4) for side in shape[1:])
        if min(height, columns) < 1:
            raise UserError(
                f"a {shape[1]}x{shape[2]} image is too small for LeNet, which needs 13x13; "
                "use larger images, as with --data.size 32, or another network"
            )
        with torch.device("meta"):
            self.convolutions = nn.Sequential(
                nn.Conv2d(shape[0], 6, 5, padding=padding),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
                nn.Conv2d(6, 16, 5),
                nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
            )
            self.hidden = nn.Sequential(nn.Linear(16 * height * columns, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
            self.classifier = nn.Linear(84, classes)
        self.allocate_()

    def features(self, images: Tensor) -> Tensor:
        """The last hidden layer: (n, C, H, W) -> (n, 84)."""
        return self.hidden(self.convolutions(images).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""
        return self.classifier(self.features(images))


class AlexNet(Network):
    """Five convolutions with ReLU, max-pooling after the first, second and last, then a linear classifier.

    Krizhevsky et al., NeurIPS 2012, cut down to 32x32 images as condensation papers use it; the first convolution of
    padding 4 for gray 28x28 images, else 2. Pooling keeps an odd last row and column, so no image vanishes.

    Args:
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        norm: After each convolution, a key of ``NORMS``; published are "none" and "batch".
    """

    def __init__(self, shape: Shape, classes: int, *, norm: Norm = "none") -> None:
        super().__init__()
        channels, height, columns = shape
        padding = first_padding(shape, 2)
        height, columns = height + 2 * padding - 4, columns + 2 * padding - 4
        layers: list[nn.Module] = []
        with torch.device("meta"):
            for number, (width, size) in enumerate(((128, 5), (192, 5), (256, 3), (192, 3), (192, 3))):
                layers += [
                    nn.Conv2d(channels, width, size, padding=size // 2 if number else padding),
                    normalisation(norm, (width, height, columns), shape),
                    nn.ReLU(),
                ]
                if number in (0, 1, 4):
                    layers.append(nn.MaxPool2d(2, ceil_mode=True))
                    height, columns = _halved(height), _halved(columns)
                channels = width
            self.convolutions = nn.Sequential(*layers)
            self.classifier = nn.Linear(channels * height * columns, classes)
        self.allocate_()

    def features(self, images: Tensor) -> Tensor:
        """The flattened last maps: (n, C, H, W) -> (n, 192 * h * w)."""
        return self.convolutions(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""
        return self.classifier(self.features(images))


def _halved(side: int) -> int:
    """A side after pooling by two that keeps an odd last row."""
    return (side + 1) // 2
