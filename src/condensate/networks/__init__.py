"""The networks that match features and are trained on the synthetic images: one family a file."""

from functools import cache
from typing import Any, NamedTuple

import torch

from condensate.networks.base import ACTIVATIONS, NORMS, POOLINGS, Network, Shape, choose, forward_operations
from condensate.networks.convnet import ConvNet
from condensate.networks.plain import MLP, AlexNet, LeNet
from condensate.networks.resnet import ResNet18
from condensate.networks.tiled import TiledConvolution, on_tiles, tileable
from condensate.networks.variants import LISTS, VARIANTS
from condensate.networks.vgg import VGG11
from condensate.networks.vit import ViT

NETWORKS: dict[str, type[Network]] = {
    "convnet": ConvNet,
    "mlp": MLP,
    "lenet": LeNet,
    "alexnet": AlexNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "vit": ViT,
}


def build(name: str, shape: Shape, classes: int, generator: torch.Generator, **options: Any) -> Network:
    """A freshly initialised network on the generator's device.

    Args:
        name: A key of ``NETWORKS``.
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        generator: Where the initialisation is drawn from.
        **options: The network's own, as for its constructor.
    """
    network: Network = choose(NETWORKS, name, "network")(shape, classes, **options)
    network.to(generator.device)
    network.reset_(generator)
    return network


class Outline(NamedTuple):
    """What is known of a network before one is made for use.

    Attributes:
        operations: Floating-point operations of one image's way through it.
        tileable: Its convolutions that ``on_tiles`` puts on tiles.
    """

    operations: float
    tileable: int


def outline(name: str, shape: Shape, classes: int, **options: Any) -> Outline:
    """The outline of the network that ``build`` makes likewise; found once in a process.

    Raises:
        UserError: If there is no such network, or not for such images.
    """
    return _outline(name, tuple(shape), classes, tuple(sorted(options.items())))


@cache
def _outline(name: str, shape: Shape, classes: int, options: tuple[tuple[str, Any], ...]) -> Outline:
    network: Network = choose(NETWORKS, name, "network")(shape, classes, **dict(options))
    return Outline(forward_operations(network, shape), tileable(network))


__all__ = [
    "ACTIVATIONS",
    "LISTS",
    "MLP",
    "NETWORKS",
    "NORMS",
    "POOLINGS",
    "VARIANTS",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "LeNet",
    "Network",
    "Outline",
    "ResNet18",
    "Shape",
    "TiledConvolution",
    "ViT",
    "build",
    "forward_operations",
    "on_tiles",
    "outline",
    "tileable",
]
