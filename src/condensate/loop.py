"""The one loop that condenses: any objective over any storage."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from condensate.errors import UserError, unknown
from condensate.objectives import Objective
from condensate.synthetic import SyntheticDataset

# On a GPU, looking at a loss waits for it: several episodes are looked at together.
LOOKED_AT_TOGETHER = {"cpu": 1, "cuda": 25}

# Published is SGD at a constant rate. The momentum of Adam is its beta 1.
OPTIMIZERS: dict[str, Callable[[list[dict[str, object]], float], Optimizer]] = {
    "sgd": lambda groups, momentum: SGD(groups, momentum=momentum),
    "adam": lambda groups, momentum: Adam(groups, betas=(momentum, 0.999)),
}
# What multiplies the learning rates in an episode, by the fraction of the episodes that went before it.
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
        state: What the optimiser remembers, tensors by name, to resume from.
    """

    episode: int
    losses: tuple[float, ...]
    step_sizes: tuple[float, ...]
    projected: int
    state: Callable[[], dict[str, Tensor]]


def condense(
    synthetic: SyntheticDataset,
    objective: Objective,
    *,
    episodes: int,
    lr: float,
    momentum: float = 0.5,
    optimizer: str = "sgd",
    schedule: str = "constant",
    lr_labels: float = 0.0,
    lr_step: float = 0.0,
    start: int = 0,
    state: dict[str, Tensor] | None = None,
    after: Callable[[Progress], None] | None = None,
) -> None:
    """Optimise what ``synthetic`` stores, in place, on the objective.

    Args:
        synthetic: Started from noise or real images.
        objective: What is matched.
        episodes: How many in all; every one redraws the objective's network.
        lr: Learning rate of the stored images.
        momentum: Of SGD; of Adam, beta 1.
        optimizer: sgd or adam.
        schedule: Of all learning rates over the episodes: constant, or cosine, which falls to 0.
        lr_labels: Learning rate of soft labels; 0 leaves the labels as they are.
        lr_step: Learning rate of the step size; 0 leaves it as it is.
        start: First episode, to resume.
        state: Of the optimiser, to resume from, as ``Progress.state()`` gave it.
        after: Called between episodes, where a checkpoint may be taken.

    Raises:
        UserError: The loss is not finite, or an unknown optimiser or schedule.
    """
    for key, name, known in (("optimizer", optimizer, [*OPTIMIZERS]), ("schedule", schedule, [*SCHEDULES])):
        if name not in known:
            raise unknown(f"condense.{key}", name, known)
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
    stepper = OPTIMIZERS[optimizer]([{"params": [p], "lr": rate} for p, rate in rates.values()], momentum)
    _restore(stepper, [*rates], state or {})
    try:
        _optimise(synthetic, objective, rates, stepper, SCHEDULES[schedule], range(start, episodes), after)
    finally:
        synthetic.labels.requires_grad_(False)
        synthetic.labels.grad = None


def _optimise(
    synthetic: SyntheticDataset,
    objective: Objective,
    rates: dict[str, tuple[Tensor, float]],
    optimizer: Optimizer,
    schedule: Callable[[float], float],
    numbers: range,
    after: Callable[[Progress], None] | None,
) -> None:
    together = LOOKED_AT_TOGETHER.get(synthetic.labels.device.type, 1)
    pending: list[tuple[Tensor, ...]] = []
    for number in numbers:
        for group, (_, rate) in zip(optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate * schedule(number / numbers.stop)
        losses, outside = [], torch.zeros((), dtype=torch.int64, device=synthetic.labels.device)
        for loss in objective.episode(synthetic, number):
            losses.append(loss)
            optimizer.step()
            optimizer.zero_grad()
            projected = synthetic.project_()
            if projected is not None:
                outside += projected
        step_size = torch.zeros(()) if synthetic.step_size is None else synthetic.step_size.detach().clone()
        pending.append((torch.stack(losses).mean(), step_size, outside))
        if len(pending) == together or number + 1 == numbers.stop:
            values, sizes, hits = (torch.stack(part).tolist() for part in zip(*pending))
            pending.clear()
            _check_finite(values, number, rates)
            if after:
                learned = tuple(sizes) if "step_size" in rates else ()
                after(Progress(number, tuple(values), learned, sum(hits), lambda: _state(optimizer, [*rates])))


def _state(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """What the optimiser remembers of the parameters of these names, as "what.name": copies."""
    return {
        f"{what}.{names[number]}": value.clone()
        for number, remembered in optimizer.state_dict()["state"].items()
        for what, value in remembered.items()
        if value is not None
    }


def _restore(optimizer: Optimizer, names: list[str], state: dict[str, Tensor]) -> None:
    """Inverse of ``_state``."""
    remembered: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        what, name = key.split(".", 1)
        remembered.setdefault(names.index(name), {})[what] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": remembered})


def _check_finite(losses: list[float], number: int, rates: dict[str, tuple[Tensor, float]]) -> None:
    for past, loss in enumerate(reversed(losses)):
        first_bad = number - past
        if loss != loss or abs(loss) == float("inf"):
            keys = {"labels": "condense.lr_labels", "step_size": "condense.lr_step"}
            tried = {keys.get(name, "condense.lr"): rate for name, (_, rate) in rates.items()}
            said = " and ".join(f"{key} {rate:g}" for key, rate in tried.items())
            smaller = " or ".join(f"--{key} {rate / 10:g}" for key, rate in tried.items())
            raise UserError(f"the loss is {loss} in episode {first_bad} at {said}; try a smaller one, as in {smaller}")
