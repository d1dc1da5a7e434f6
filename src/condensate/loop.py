"""The one loop that condenses: any objective over any storage."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from condensate.errors import UserError, unknown
from condensate.objectives import Objective, Replayed
from condensate.ranks import ALONE, Ranks
from condensate.sgd import Sgd, check
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
    check(momentum, lr=lr, lr_labels=lr_labels, lr_step=lr_step)
    learned, device = _learned(synthetic, lr, lr_labels, lr_step), synthetic.labels.device
    optimizers = {name: Sgd([tensor], momentum=momentum) for name, (tensor, _) in learned.items()}
    for name, held in (velocity or {}).items():
        optimizers[name].velocities = [held.clone()]
    share, watch = SCHEDULES[schedule], _Watch(synthetic, learned, optimizers, after, ranks)
    matched = Replayed(objective) if replay and device.type == "cuda" and objective.recordable else objective
    try:
        for number in range(start, episodes):
            now = share(number / episodes)
            losses, outside = [], torch.zeros((), dtype=torch.int64, device=device)
            for loss in matched.episode(synthetic, number):
                ranks.sum_gradients_([tensor for tensor, _ in learned.values()], loss)
                losses.append(loss)
                for name, (_, rate) in learned.items():
                    optimizers[name].step(rate * now)
                    optimizers[name].zero_grad()
                projected = synthetic.project_()
                if projected is not None:
                    outside += projected
            watch.note(number, torch.stack(losses).mean(), outside, last=number + 1 == episodes)
    finally:
        if isinstance(matched, Replayed):
            matched.forget()
        synthetic.labels.requires_grad_(False)
        synthetic.labels.grad = None


Learned = dict[str, tuple[Tensor, float]]  # by name, with the learning rate


def _learned(synthetic: SyntheticDataset, lr: float, lr_labels: float, lr_step: float) -> Learned:
    """What of the set the optimiser changes."""
    stored = synthetic.parameterization.named_parameters()
    learned: Learned = {f"stored.{name}": (tensor, lr) for name, tensor in stored}
    if not learned:
        raise UserError(f"{type(synthetic.parameterization).__name__} holds real images and has nothing to condense")
    if lr_labels:
        if not synthetic.labels.is_floating_point():
            raise UserError("only soft labels, (n, K), can be learned; the set has one class an image")
        learned["labels"] = synthetic.labels.requires_grad_(True), lr_labels
    if synthetic.step_size is not None:
        synthetic.step_size.requires_grad_(lr_step > 0)
        if lr_step:
            learned["step_size"] = synthetic.step_size, lr_step
    return learned


class _Watch:
    """Looks at what episodes came to, at several together, and reports them; all processes at the same ones."""

    def __init__(
        self,
        synthetic: SyntheticDataset,
        learned: Learned,
        optimizers: dict[str, Sgd],
        after: Callable[[Progress], None] | None,
        ranks: Ranks,
    ) -> None:
        self.synthetic, self.learned, self.optimizers, self.after = synthetic, learned, optimizers, after
        self.most, self.ranks = LOOKED_AT_TOGETHER.get(synthetic.labels.device.type, 1), ranks
        self.together = self.most if ranks.world == 1 else 1
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.looked = time.monotonic()

    def note(self, number: int, loss: Tensor, outside: Tensor, last: bool) -> None:
        """Of an episode: its loss, and how often its step size had to be kept within bounds."""
        size = self.synthetic.step_size
        self.pending.append((loss, torch.zeros(()) if size is None else size.detach().clone(), outside))
        late = self.ranks.world == 1 and time.monotonic() - self.looked >= LOOKED_AT_EVERY
        if len(self.pending) < self.together and not late and not last:
            return
        losses, sizes, hits = (torch.stack(part).tolist() for part in zip(*self.pending))
        self.pending.clear()
        if self.ranks.world > 1 and self.most > 1:  # clocks differ: the first process says when it is time again
            each = (time.monotonic() - self.looked) / len(losses)
            self.together = self.ranks.once(lambda: max(1, min(self.most, int(LOOKED_AT_EVERY / max(each, 1e-9)))))
        self.looked = time.monotonic()
        _check_finite(losses, number, self.learned)
        if self.after:
            found = tuple(sizes) if "step_size" in self.learned else ()
            self.after(Progress(number, tuple(losses), found, sum(hits), self.velocity))

    def velocity(self) -> dict[str, Tensor]:
        """Momentum of all that is learned, as far as there is any."""
        found = {name: optimizer.velocities[0] for name, optimizer in self.optimizers.items()}
        return {name: velocity.clone() for name, velocity in found.items() if velocity is not None}


def _check_finite(losses: list[float], number: int, learned: Learned) -> None:
    for past, loss in enumerate(reversed(losses)):
        first_bad = number - past
        if loss != loss or abs(loss) == float("inf"):
            keys = {"labels": "condense.lr_labels", "step_size": "condense.lr_step"}
            tried = {keys.get(name, "condense.lr"): rate for name, (_, rate) in learned.items()}
            said = " and ".join(f"{key} {rate:g}" for key, rate in tried.items())
            smaller = " or ".join(f"--{key} {rate / 10:g}" for key, rate in tried.items())
            raise UserError(f"the loss is {loss} in episode {first_bad} at {said}; try a smaller one, as in {smaller}")
