"""Stochastic gradient descent, the one optimiser of condensing and of training."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from condensate.errors import UserError


def check(momentum: float, **others: float) -> None:
    """Refuse a momentum, and learning rates and weight decays by name, that have no meaning, with a ``UserError``."""
    for name, value in {"momentum": momentum, **others}.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{name} must be a number of at least 0, got {value}")
    if momentum >= 1:
        raise UserError(f"momentum must be below 1, got {momentum}")


class Sgd:
    """The update of ``torch.optim.SGD``, by PyTorch's function of it.

    With gradient g, velocity v and weight decay d: v <- momentum v + g + d x, at first v <- g + d x; x <- x - lr v.
    PyTorch's class imports the compiler where one is made: more than a second, for which a run that compiles nothing
    need not wait.

    Args:
        tensors: What is learned, changed in place.
        momentum: Of the velocity.
        weight_decay: Times a tensor, added to its gradient.
        fused: Whether one kernel does all of it. The same tensors must have gradients every time then, and who sets
            ``velocities`` must lay them out as the tensors are.
    """

    def __init__(
        self, tensors: Iterable[Tensor], *, momentum: float = 0.0, weight_decay: float = 0.0, fused: bool = False
    ) -> None:
        self.tensors = list(tensors)
        self.momentum, self.weight_decay, self.fused = momentum, weight_decay, fused
        self.velocities: list[Tensor | None] = [None] * len(self.tensors)  # none before the first step

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update, at a learning rate, what has a gradient."""
        found = [(n, x, g) for n, x in enumerate(self.tensors) if (g := x.grad) is not None]
        velocities = [self.velocities[n] for n, *_ in found]
        sgd(
            [x for _, x, _ in found],
            [g for *_, g in found],
            velocities,
            fused=self.fused or None,  # None, not False: PyTorch then takes what is best for the device
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for (n, *_), velocity in zip(found, velocities, strict=True):
            self.velocities[n] = velocity

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        for tensor in self.tensors:
            tensor.grad = None
