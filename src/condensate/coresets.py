"""Choosing real images: the baselines, and the start from real images.

A class of fewer images than asked for gives all it has, and then the same ones again; a warning says so.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from condensate.data import Split
from condensate.networks import Network
from condensate.streams import Streams
from condensate.training import scored_at_once


def random(real: Split, per_class: int, streams: Streams) -> Tensor:
    """Indices (K * per_class,) of random images, class-major; a class draws from its own stream."""

    def choose(label: int, count: int) -> Tensor:
        return real.sample(label, count, streams("coreset", label))

    return _each_class(real, per_class, choose)


def herding(real: Split, per_class: int, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Indices (K * per_class,), class-major, whose running mean of features stays closest to the class mean.

    Welling, "Herding dynamical weights to learn", ICML 2009, as Rebuffi et al., "iCaRL", CVPR 2017, algorithm 4,
    choose exemplars.

    Args:
        real: Where to choose.
        per_class: How many of each class.
        features: Of image indices (k,) -> (k, D), as ``embed`` makes them.
    """

    def choose(label: int, count: int) -> Tensor:
        index = _members(real, label)
        points = features(index)
        mean, total, chosen = points.mean(0), torch.zeros_like(points[0]), list[int]()
        free = torch.ones(len(points), dtype=torch.bool, device=points.device)
        while len(chosen) < count:
            distance = (mean - (total + points) / (len(chosen) + 1)).norm(dim=1).masked_fill(~free, torch.inf)
            chosen.append(int(distance.argmin()))
            free[chosen[-1]] = False
            total = total + points[chosen[-1]]
        return index[chosen]

    return _each_class(real, per_class, choose)


def k_centre(real: Split, per_class: int, features: Callable[[Tensor], Tensor]) -> Tensor:
    """Indices (K * per_class,), class-major, chosen greedily so that every image of a class has a chosen one close by.

    The first is the image closest to the class mean; each next one is the farthest from those chosen. Sener &
    Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018, algorithm 1.

    Args:
        real: Where to choose.
        per_class: How many of each class.
        features: Of image indices (k,) -> (k, D), as ``embed`` makes them.
    """

    def choose(label: int, count: int) -> Tensor:
        index = _members(real, label)
        points = features(index)
        chosen = [int((points - points.mean(0)).norm(dim=1).argmin())]
        distance = (points - points[chosen[0]]).norm(dim=1)
        while len(chosen) < count:
            distance[chosen[-1]] = -1.0  # never again, even where all others lie on top of it
            chosen.append(int(distance.argmax()))
            distance = distance.minimum((points - points[chosen[-1]]).norm(dim=1))
        return index[chosen]

    return _each_class(real, per_class, choose)


def embed(network: Network, real: Split, chunk: int | None = None) -> Callable[[Tensor], Tensor]:
    """The features of a trained network as a function of image indices: (k,) -> (k, D)."""

    @torch.no_grad()
    def features(index: Tensor) -> Tensor:
        network.eval()
        parts = index.split(chunk or scored_at_once(real.shape, index.device))
        real.expect(parts)
        return torch.cat([network.features(real.images(part)) for part in parts])

    return features


def _each_class(real: Split, per_class: int, choose: Callable[[int, int], Tensor]) -> Tensor:
    counts = real.counts().tolist()
    if min(counts) < per_class:
        small = f"{real.classes[counts.index(min(counts))]} has {min(counts)}"
        warnings.warn(f"{per_class} images of each class are asked for, but {small}: some are repeated", stacklevel=3)
    chosen = []
    for label, count in enumerate(counts):
        some = choose(label, min(count, per_class))
        chosen.append(some.repeat(-(-per_class // len(some)))[:per_class])
    return torch.cat(chosen)


def _members(real: Split, label: int) -> Tensor:
    return (real.labels == label).nonzero().flatten()
