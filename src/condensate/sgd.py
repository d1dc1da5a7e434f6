"""Stochastic gradient descent, the one optimiser of condensing and of training."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class Sgd:
    """The update of ``torch.optim.SGD``, by PyTorch's function of it.

    With gradient g, velocity v and weight decay d: v <- momentum v + g + d x, at first v <- g + d x; x <- x - lr v.
    PyTorch's class imports the compiler where one is made: more than a second, for which a run that compiles nothing
    need not wait.

    Args:
        tensors: What is learned, changed in place.
        momentum: Of the velocity.
        weight_decay: Times a tensor, added to its gradient.
        fused: Whether one kernel does all of it; a velocity is then laid out as its tensor is.
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
        learned = [number for number, tensor in enumerate(self.tensors) if tensor.grad is not None]
        velocities = [self.velocities[number] for number in learned]
        sgd(
            [self.tensors[number] for number in learned],
            [gradient for tensor in self.tensors if (gradient := tensor.grad) is not None],
            velocities,
            fused=True if self.fused else None,
            lr=lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for number, velocity in zip(learned, velocities, strict=True):
            self.velocities[number] = velocity

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        for tensor in self.tensors:
            tensor.grad = None
