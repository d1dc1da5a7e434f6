"""Gradients of a network's loss as ``torch.func`` programs, which compile, and what is measured between them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

from condensate.augment import transform
from condensate.networks import Network

Named = dict[str, Tensor]


def parameter_gradient(network: Network, augmented: bool, memory_format: torch.memory_format) -> Callable[..., Named]:
    """The program (parameters, buffers, images, labels, augmentation) -> gradient of the mean cross-entropy.

    Labels are classes (n,) or soft (n, K); the augmentation is what ``transform`` takes after the images, and is
    applied if ``augmented``.
    """

    def loss(parameters: Named, buffers: Named, images: Tensor, labels: Tensor, *drawn: Tensor) -> Tensor:
        seen = transform(images, *drawn) if augmented else images
        seen = seen.to(next(iter(parameters.values())).dtype, memory_format=memory_format)
        scores = functional_call(network, (parameters, buffers), seen)
        return cross_entropy(scores.to(torch.promote_types(scores.dtype, torch.float32)), labels)

    return grad(loss)


def inner_product(ours: Named, theirs: Named) -> Tensor:
    """Sum over all parameters of the product; a scalar."""
    return torch.stack([(gradient * theirs[name]).sum() for name, gradient in ours.items()]).sum()


def squared_distance(ours: Named, theirs: Named) -> Tensor:
    """Squared Euclidean distance over all parameters; a scalar."""
    return torch.stack([(value - theirs[name]).square().sum() for name, value in ours.items()]).sum()


def plain(named: Named, dtype: torch.dtype, memory_format: torch.memory_format) -> Named:
    """Parameters or buffers as programs take them: detached, floating ones in ``dtype``, images' weights laid out."""

    def one(tensor: Tensor) -> Tensor:
        layout = memory_format if tensor.ndim == 4 else torch.preserve_format
        return tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, memory_format=layout)

    return {name: one(tensor) for name, tensor in named.items()}
