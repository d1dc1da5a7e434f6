"""The one loop that condenses: any objective over any storage."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD

from condensate.errors import UserError
from condensate.objectives import Objective
from condensate.synthetic import SyntheticDataset

# On a GPU, looking at a loss waits for it: several episodes are looked at together.
LOOKED_AT_TOGETHER = {"cpu": 1, "cuda": 25}


@dataclass(frozen=True)
class Progress:
    """Where a condensation stands, between two episodes.

    Args:
        episode: Number of the episode that ended, from 0.
        losses: Of the episodes since the last report, one each (the mean over its updates).
        velocity: Momentum of every stored parameter by name, to resume from.
    """

    episode: int
    losses: tuple[float, ...]
    velocity: Callable[[], dict[str, Tensor]]


def condense(
    synthetic: SyntheticDataset,
    objective: Objective,
    *,
    episodes: int,
    lr: float,
    momentum: float = 0.5,
    start: int = 0,
    velocity: dict[str, Tensor] | None = None,
    after: Callable[[Progress], None] | None = None,
) -> None:
    """Optimise what ``synthetic`` stores, in place, by SGD on the objective.

    Args:
        synthetic: Started from noise or real images.
        objective: What is matched.
        episodes: How many in all; every one redraws the objective's network.
        lr: Learning rate of the stored images.
        momentum: Of SGD.
        start: First episode, to resume.
        velocity: Momentum to resume from, as ``Progress.velocity()`` gave it.
        after: Called between episodes, where a checkpoint may be taken.

    Raises:
        UserError: The loss is not finite.
    """
    parameters = dict(synthetic.parameterization.named_parameters())
    if not parameters:
        raise UserError(f"{type(synthetic.parameterization).__name__} holds real images and has nothing to condense")
    optimizer = SGD(parameters.values(), lr, momentum)
    for name, value in (velocity or {}).items():
        optimizer.state[parameters[name]]["momentum_buffer"] = value.clone()

    def current() -> dict[str, Tensor]:
        buffers = {
            name: optimizer.state[p].get("momentum_buffer") for name, p in parameters.items() if p in optimizer.state
        }
        return {name: buffer.detach().clone() for name, buffer in buffers.items() if buffer is not None}

    together = LOOKED_AT_TOGETHER.get(synthetic.labels.device.type, 1)
    pending: list[Tensor] = []
    for number in range(start, episodes):
        losses = []
        for loss in objective.episode(synthetic, number):
            losses.append(loss)
            optimizer.step()
            optimizer.zero_grad()
            synthetic.project_()
        pending.append(torch.stack(losses).mean())
        if len(pending) == together or number + 1 == episodes:
            values = tuple(torch.stack(pending).tolist())
            pending.clear()
            _check_finite(values, number, lr)
            if after:
                after(Progress(number, values, current))


def _check_finite(losses: tuple[float, ...], number: int, lr: float) -> None:
    for past, loss in enumerate(reversed(losses)):
        first_bad = number - past
        if loss != loss or abs(loss) == float("inf"):
            raise UserError(
                f"the loss is {loss} in episode {first_bad} at learning rate {lr:g}; "
                f"try a smaller one, as in --condense.lr {lr / 10:g}"
            )
