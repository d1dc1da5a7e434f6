"""Choosing real images: the baselines, and the start from real images."""

from collections.abc import Callable

import torch
from torch import Tensor

from condensate.data import Split
from condensate.errors import UserError
from condensate.networks import Network
from condensate.streams import Streams


def random(real: Split, per_class: int, streams: Streams) -> Tensor:
    """Indices (K * per_class,) of random images, class-major; a class draws from its own stream."""
    chosen = [_of_class(real, label, per_class, streams) for label in range(len(real.counts()))]
    return torch.cat(chosen)


def herding(real: Split, per_class: int, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Indices (K * per_class,), class-major, whose running mean of features stays closest to the class mean.

    Welling, "Herding dynamical weights to learn", ICML 2009, as Rebuffi et al., "iCaRL", CVPR 2017, algorithm 4,
    choose exemplars.

    Args:
        real: Where to choose.
        per_class: How many of each class.
        features: Of image indices (k,) -> (k, D), as ``embed`` makes them.
    """

    def choose(points: Tensor) -> list[int]:
        mean, total, chosen = points.mean(0), torch.zeros_like(points[0]), list[int]()
        free = torch.ones(len(points), dtype=torch.bool, device=points.device)
        for count in range(1, per_class + 1):
            distance = (mean - (total + points) / count).norm(dim=1).masked_fill(~free, torch.inf)
            chosen.append(int(distance.argmin()))
            free[chosen[-1]] = False
            total = total + points[chosen[-1]]
        return chosen

    return _each_class(real, per_class, features, choose)


def k_centre(real: Split, per_class: int, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Indices (K * per_class,), class-major, chosen greedily so that every image of a class has a chosen one close by.

    The first is the image closest to the class mean; each next one is the farthest from those chosen. Sener &
    Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018, algorithm 1.

    Args:
        real: Where to choose.
        per_class: How many of each class.
        features: Of image indices (k,) -> (k, D), as ``embed`` makes them.
    """

    def choose(points: Tensor) -> list[int]:
        chosen = [int((points - points.mean(0)).norm(dim=1).argmin())]
        distance = (points - points[chosen[0]]).norm(dim=1)
        while len(chosen) < per_class:
            chosen.append(int(distance.argmax()))
            distance = distance.minimum((points - points[chosen[-1]]).norm(dim=1))
        return chosen

    return _each_class(real, per_class, features, choose)


def embed(network: Network, real: Split, chunk: int = 512) -> Callable[[Tensor], Tensor]:
    """The features of a trained network as a function of image indices: (k,) -> (k, D)."""

    @torch.no_grad()
    def features(index: Tensor) -> Tensor:
        network.eval()
        return torch.cat([network.features(real.images(part)) for part in index.split(chunk)])

    return features


def _each_class(
    real: Split, per_class: int, features: Callable[[Tensor], Tensor], choose: Callable[[Tensor], list[int]]
) -> Tensor:
    _check_counts(real, per_class)
    chosen = []
    for label in range(len(real.counts())):
        index = (real.labels == label).nonzero().flatten()
        chosen.append(index[choose(features(index))])
    return torch.cat(chosen)


def _of_class(real: Split, label: int, per_class: int, streams: Streams) -> Tensor:
    return real.sample(label, per_class, streams("coreset", label))


def _check_counts(real: Split, per_class: int) -> None:
    smallest = int(real.counts().min())
    if smallest < per_class:
        raise UserError(f"cannot choose {per_class} images of each class: the smallest class has {smallest}")
