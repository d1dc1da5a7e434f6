"""The one loop that condenses: any objective over any storage."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD

from condensate.errors import UserError, unknown
from condensate.objectives import Objective, Replayed
from condensate.ranks import ALONE, Ranks
from condensate.synthetic import SyntheticDataset

# On a GPU, looking at a loss waits for it: several episodes are looked at together, as many as begin in a second.
LOOKED_AT_TOGETHER = {"cpu": 1, "cuda": 25}
LOOKED_AT_EVERY = 1.0

# What multiplies the learning rates in an episode, by the share of the episodes that went before it.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


@dataclass(frozen=True)
class Progress:
    """Where a condensation stands, between two episodes.

    Args:
        episode: Number of the episode that ended, from 0.
        losses: Of the episodes since the last report, one each (the mean over its updates).
        step_sizes: The learned step size after each of them; empty where none is learned.
        projected: How often in them the step size had to be kept within its bounds.
        velocity: Momentum of every stored parameter by name, to resume from.
    """

    episode: int
    losses: tuple[float, ...]
    step_sizes: tuple[float, ...]
    projected: int
    velocity: Callable[[], dict[str, Tensor]]


def condense(
    synthetic: SyntheticDataset,
    objective: Objective,
    *,
    episodes: int,
    lr: float,
    momentum: float = 0.5,
    schedule: str = "constant",
    lr_labels: float = 0.0,
    lr_step: float = 0.0,
    start: int = 0,
    velocity: dict[str, Tensor] | None = None,
    after: Callable[[Progress], None] | None = None,
    ranks: Ranks = ALONE,
    replay: bool = True,
) -> None:
    """Optimise what ``synthetic`` stores, in place, by SGD on the objective.

    Args:
        synthetic: Started from noise or real images.
        objective: What is matched.
        episodes: How many in all; every one redraws the objective's network.
        lr: Learning rate of the stored images.
        momentum: Of SGD.
        schedule: Of all learning rates: constant, or cosine, which falls from them to 0 over the episodes.
        lr_labels: Learning rate of soft labels; 0 leaves the labels as they are.
        lr_step: Learning rate of the step size; 0 leaves it as it is.
        start: First episode, to resume.
        velocity: Momentum to resume from, as ``Progress.velocity()`` gave it.
        after: Called between episodes, where a checkpoint may be taken.
        ranks: Processes that condense the same set together, each objective told its share of them.
        replay: Whether a GPU records an episode and replays it, see ``Replayed``; the numbers are the same.

    Raises:
        UserError: The loss is not finite, or the schedule is unknown, or a number has no meaning.
    """
    if schedule not in SCHEDULES:
        raise unknown("condense.schedule", schedule, SCHEDULES)
    if not 0 <= start <= episodes:
        raise UserError(f"expected episodes of at least 0 and a start among them, got {episodes} and {start}")
    for name, value in {"lr": lr, "momentum": momentum, "lr_labels": lr_labels, "lr_step": lr_step}.items():
        if not 0 <= value < math.inf:
            raise UserError(f"{name} must be a number of at least 0, got {value}")
    if momentum >= 1:
        raise UserError(f"momentum must be below 1, got {momentum}")
    rates: dict[str, tuple[Tensor, float]] = {
        f"stored.{name}": (parameter, lr) for name, parameter in synthetic.parameterization.named_parameters()
    }
    if not rates:
        raise UserError(f"{type(synthetic.parameterization).__name__} holds real images and has nothing to condense")
    if lr_labels:
        if not synthetic.labels.is_floating_point():
            raise UserError("only soft labels, (n, K), can be learned; the set has one class an image")
        rates["labels"] = synthetic.labels.requires_grad_(True), lr_labels
    if synthetic.step_size is not None:
        synthetic.step_size.requires_grad_(lr_step > 0)
        if lr_step:
            rates["step_size"] = synthetic.step_size, lr_step
    replay = replay and synthetic.labels.device.type == "cuda" and objective.recordable
    matched = Replayed(objective) if replay else objective
    try:
        schedules = SCHEDULES[schedule]
        _optimise(synthetic, matched, rates, episodes, momentum, schedules, start, velocity or {}, after, ranks)
    finally:
        if isinstance(matched, Replayed):
            matched.forget()
        synthetic.labels.requires_grad_(False)
        synthetic.labels.grad = None


def _optimise(
    synthetic: SyntheticDataset,
    objective: Objective | Replayed,
    rates: dict[str, tuple[Tensor, float]],
    episodes: int,
    momentum: float,
    schedule: Callable[[float], float],
    start: int,
    velocity: dict[str, Tensor],
    after: Callable[[Progress], None] | None,
    ranks: Ranks,
) -> None:
    parameters = {name: parameter for name, (parameter, _) in rates.items()}
    optimizer = SGD([{"params": [parameter], "lr": rate} for parameter, rate in rates.values()], momentum=momentum)
    for name, value in velocity.items():
        optimizer.state[parameters[name]]["momentum_buffer"] = value.clone()

    def current() -> dict[str, Tensor]:
        buffers = {
            name: optimizer.state[p].get("momentum_buffer") for name, p in parameters.items() if p in optimizer.state
        }
        return {name: buffer.detach().clone() for name, buffer in buffers.items() if buffer is not None}

    together = LOOKED_AT_TOGETHER.get(synthetic.labels.device.type, 1)
    pending: list[tuple[Tensor, ...]] = []
    looked = time.monotonic()
    for number in range(start, episodes):
        for group, (_, rate) in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate * schedule(number / episodes)
        losses, outside = [], torch.zeros((), dtype=torch.int64, device=synthetic.labels.device)
        for loss in objective.episode(synthetic, number):
            ranks.sum_gradients_([parameter for parameter, _ in rates.values()], loss)
            losses.append(loss)
            optimizer.step()
            optimizer.zero_grad()
            projected = synthetic.project_()
            if projected is not None:
                outside += projected
        step_size = torch.zeros(()) if synthetic.step_size is None else synthetic.step_size.detach().clone()
        pending.append((torch.stack(losses).mean(), step_size, outside))
        due = len(pending) >= together or time.monotonic() - looked >= LOOKED_AT_EVERY
        if due or number + 1 == episodes:
            values, sizes, hits = (torch.stack(part).tolist() for part in zip(*pending))
            pending.clear()
            looked = time.monotonic()
            _check_finite(values, number, rates)
            if after:
                learned = tuple(sizes) if "step_size" in rates else ()
                after(Progress(number, tuple(values), learned, sum(hits), current))


def _check_finite(losses: list[float], number: int, rates: dict[str, tuple[Tensor, float]]) -> None:
    for past, loss in enumerate(reversed(losses)):
        first_bad = number - past
        if loss != loss or abs(loss) == float("inf"):
            keys = {"labels": "condense.lr_labels", "step_size": "condense.lr_step"}
            tried = {keys.get(name, "condense.lr"): rate for name, (_, rate) in rates.items()}
            said = " and ".join(f"{key} {rate:g}" for key, rate in tried.items())
            smaller = " or ".join(f"--{key} {rate / 10:g}" for key, rate in tried.items())
            raise UserError(f"the loss is {loss} in episode {first_bad} at {said}; try a smaller one, as in {smaller}")
