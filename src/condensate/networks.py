"""The networks that match features and are trained on the synthetic images."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from condensate.errors import UserError, unknown

Shape = tuple[int, int, int]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "swish": nn.SiLU,
}

POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "avg": lambda: nn.AvgPool2d(2),
    "max": lambda: nn.MaxPool2d(2),
}

NORMS: dict[str, Callable[[Shape], nn.Module]] = {
    "none": lambda shape: nn.Identity(),
    "instance": lambda shape: nn.GroupNorm(shape[0], shape[0]),
    "batch": lambda shape: nn.BatchNorm2d(shape[0]),
    "layer": lambda shape: nn.LayerNorm(shape),
    "group": lambda shape: nn.GroupNorm(4, shape[0]),
}


class Network(nn.Module, ABC):
    """A classifier with a feature extractor.

    Construction draws nothing and leaves the parameters unset; ``reset_`` initialises them, and again and again in
    place, so that compiled programs that hold them stay valid.
    """

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """What the classifier sees: (n, C, H, W) -> (n, D)."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""

    @property
    def batch_statistics(self) -> bool:
        """Whether an image's features depend on the other images of its batch."""
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules())

    @torch.no_grad()
    def reset_(self, generator: torch.Generator) -> None:
        """Draw PyTorch's default initialisation anew, in place, and forget running statistics.

        Weights and biases of linear and convolution layers are uniform within 1/sqrt(fan in); normalisation layers
        start as the identity.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = module.weight[0].numel() ** -0.5
                for parameter in module.parameters(recurse=False):
                    _uniform_(parameter, bound, generator)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm | nn.modules.batchnorm._BatchNorm):
                module.reset_parameters()


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
        activation: Literal["relu", "leaky-relu", "sigmoid", "swish"] = "relu",
        norm: Literal["none", "instance", "batch", "layer", "group"] = "instance",
        pooling: Literal["none", "avg", "max"] = "avg",
    ) -> None:
        super().__init__()
        channels, height, source_width = shape
        if width < 1 or depth < 1:
            raise UserError(f"a ConvNet needs width and depth of at least 1, got {width} and {depth}")
        if norm == "group" and width % 4:
            raise UserError(f"group normalisation has 4 groups: the width must be a multiple of 4, got {width}")
        padding = 3 if shape == (1, 28, 28) else 1
        height, columns = height + 2 * padding - 2, source_width + 2 * padding - 2
        blocks: list[nn.Module] = []
        with torch.device("meta"):
            for block in range(depth):
                blocks += [
                    nn.Conv2d(channels if block == 0 else width, width, 3, padding=padding if block == 0 else 1),
                    _choose(NORMS, norm, "normalisation")((width, height, columns)),
                    _choose(ACTIVATIONS, activation, "activation")(),
                    _choose(POOLINGS, pooling, "pooling")(),
                ]
                if pooling != "none":
                    height, columns = height // 2, columns // 2
                if min(height, columns) < 1:
                    remedy = f"the largest depth is {block}" if block else "use --network.pooling none"
                    raise UserError(
                        f"a {shape[1]}x{shape[2]} image is too small for depth {depth}: "
                        f"it vanishes in block {block + 1}; {remedy}"
                    )
            self.blocks = nn.Sequential(*blocks)
            self.classifier = nn.Linear(width * height * columns, classes)
        self.to_empty(device="cpu")

    def features(self, images: Tensor) -> Tensor:
        """The flattened output of the last block: (n, C, H, W) -> (n, width * h * w)."""
        return self.blocks(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores: (n, C, H, W) -> (n, K)."""
        return self.classifier(self.features(images))


NETWORKS: dict[str, type[Network]] = {"convnet": ConvNet}


def build(name: str, shape: Shape, classes: int, generator: torch.Generator, **options: Any) -> Network:
    """A freshly initialised network on the generator's device.

    Args:
        name: A key of ``NETWORKS``.
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        generator: Where the initialisation is drawn from.
        **options: The network's own, as for its constructor.
    """
    network = _choose(NETWORKS, name, "network")(shape, classes, **options)
    network.to(generator.device)
    network.reset_(generator)
    return network


def _choose(registry: dict[str, Any], name: str, kind: str) -> Any:
    if name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def _uniform_(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    # Drawn contiguously, so that the numbers do not depend on the parameter's memory format.
    parameter.copy_(torch.empty(parameter.shape, device=generator.device).uniform_(-bound, bound, generator=generator))
