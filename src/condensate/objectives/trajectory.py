"""Trajectory matching: MTT, and LoMTT over low-rank storage."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad_and_value, replace_all_batch_norm_modules_

from condensate.augment import Augment, Numbers
from condensate.compute import Compute, parts, uploaded
from condensate.errors import UserError
from condensate.experts import Trajectories
from condensate.networks import Network, on_tiles
from condensate.objectives.base import Layers, Objective, Room, Work
from condensate.objectives.programs import Named, inner_product, parameter_gradient, plain, squared_distance
from condensate.ranks import ALONE, Ranks
from condensate.streams import Streams
from condensate.synthetic import LARGEST_STEP_SIZE, SMALLEST_STEP_SIZE, SyntheticDataset


@dataclass(frozen=True)
class _Set:
    """The synthetic set as it is throughout an episode, decoded once, in the type of the computation."""

    images: Tensor
    labels: Tensor
    step_size: Tensor


@dataclass(frozen=True)
class _Way:
    """From where to where an expert goes, and the square of how far that is."""

    initial: Named
    target: Named
    length: Tensor


@dataclass(frozen=True)
class _Step:
    """A synthetic batch of the student: which images, and for each of them what ``transform`` takes after it."""

    index: Tensor
    drawn: tuple[Tensor, ...]


# Part of a batch: its images' indices, its share of them, and images, labels and augmentation as programs take them.
_Piece = tuple[Tensor, float, tuple[Tensor, ...]]


class TrajectoryMatching(Objective):
    """Let a student trained on the synthetic set for some steps end where an expert ends after some epochs.

    Each episode takes an expert and an epoch t below ``max_start_epoch``. The student starts from the expert's
    parameters then, theta_0, and takes ``syn_steps`` steps of plain gradient descent on synthetic batches,
    theta_{i+1} = theta_i - a g_i with g_i = grad L(theta_i; T(batch_i)), a the learned step size. Added is the
    gradient of

        || theta_N - expert(t + expert_epochs) ||^2 / || expert(t) - expert(t + expert_epochs) ||^2

    Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022, algorithm 1.

    The gradient is exact, without a graph over the steps: the student's parameters after every step are kept, and the
    adjoint lam, at first d loss / d theta_N, walks back over them. With s = <g_i, lam> at step i, images and labels
    get -a ds/d(images, labels), the step size -s, and lam becomes lam - a ds/d theta_i. Memory is that of one chunk
    of one step and, for every step, one copy of the parameters and the augmentation's draw.

    Batches are pieces of a permutation of the whole set, the last one first, drawn anew when it is used up. BatchNorm
    layers use their batch's statistics, as in training, and go through the network in one piece.

    Several processes deal out the experts of an episode; those past their number have nothing to match.

    Args:
        experts: Trajectories of the same network on real images.
        network: Its parameters are not used; its type is that of the computation.
        augment: Drawn anew for every batch, one operator a batch, its parameters per image (not siamese).
        streams: Source of the start epochs, batches and augmentations.
        compute: Compilation, tiles and chunk. Everything is computed in the network's own precision.
        ranks: Which of several processes this is.
        syn_steps: Steps of the student.
        expert_epochs: Epochs of the expert that they stand for.
        max_start_epoch: The student starts after an epoch drawn uniformly from 0 to below this.
        batch_syn: Synthetic images a step; null for all of them.
        experts_per_step: Experts an episode, whose losses are averaged.
        step_size: The learning rate a of the student before the first episode; see condense.lr_step.
    """

    matches_experts: ClassVar[bool] = True
    tiling: ClassVar[int] = 3

    def __init__(
        self,
        experts: Trajectories,
        network: Network,
        augment: Augment,
        streams: Streams,
        compute: Compute | None = None,
        ranks: Ranks = ALONE,
        *,
        syn_steps: int = 50,
        expert_epochs: int = 2,
        max_start_epoch: int = 5,
        batch_syn: int | None = None,
        experts_per_step: int = 1,
        step_size: float = 0.01,
    ) -> None:
        counts = {"syn_steps": syn_steps, "expert_epochs": expert_epochs, "max_start_epoch": max_start_epoch}
        counts |= {"batch_syn": 1 if batch_syn is None else batch_syn, "experts_per_step": experts_per_step}
        for key, value in counts.items():
            if value < 1:
                raise UserError(f"objective.{key} must be at least 1, got {value}")
        if not SMALLEST_STEP_SIZE <= step_size <= LARGEST_STEP_SIZE:
            raise UserError(
                f"objective.step_size must be from {SMALLEST_STEP_SIZE:g} to {LARGEST_STEP_SIZE:g}, got {step_size}"
            )
        check_window(max_start_epoch, expert_epochs, experts.epochs)
        if experts_per_step > len(experts):
            raise UserError(f"objective.experts_per_step is {experts_per_step}, but there are {len(experts)} experts")
        self.experts, self.augment, self.streams = experts, augment, streams
        self.compute = compute or Compute()
        self.syn_steps, self.expert_epochs, self.max_start_epoch = syn_steps, expert_epochs, max_start_epoch
        self.batch_syn, self.experts_per_step = batch_syn, experts_per_step
        self.own = ranks.share(range(experts_per_step))
        network = on_tiles(network) if self.compute.tiled else network
        replace_all_batch_norm_modules_(network)  # in place: batch statistics always, and no buffers
        self.network = network.requires_grad_(True).train()
        self.chunk = None if network.batch_statistics else self.compute.chunk
        self._ways: dict[int, _Way] = {}  # by their place in the episode, on the device, held from one to the next
        first = next(network.parameters())
        self.dtype, self.device = first.dtype, first.device
        gradient = parameter_gradient(self.network, bool(augment.ops), self.compute.memory_format)
        self._descend = self.compute.program(_descent(gradient))
        self._pull_back = self.compute.program(_adjoint(gradient))

    @classmethod
    def planned(cls, classes: int, images: int, **options: Any) -> Work:
        """3 forwards' operations an image and step on the way, 9 on the way back."""
        batch = options["batch_syn"] or images
        check_batch(batch, images)
        experts = int(options["experts_per_step"])
        return Work(features=0, gradients=4 * experts * int(options["syn_steps"]) * int(batch), parts=experts)

    @classmethod
    def room(cls, layers: Layers, compute: Compute, classes: int, images: int, **options: Any) -> Room:
        """All layers of a piece under a gradient of gradients, all images thrice, and the student after every step."""
        batch = options["batch_syn"] or images
        piece = -(-batch // parts(batch, compute.at_once))
        activations = 4.0 * layers.every * piece + 3 * images * layers.image
        return Room(activations, lasting=options["syn_steps"] * layers.parameters)

    @property
    def recordable(self) -> bool:
        """Always: experts are brought to the device beforehand."""
        return True

    def prepare(self, synthetic: SyntheticDataset, number: int) -> None:
        """Bring the experts of the episode to the device, to where those before them lay."""
        if synthetic.step_size is None:
            raise UserError(
                "trajectory matching needs a set with a step size, as in SyntheticDataset(..., step_size=0.01)"
            )
        check_batch(self.batch_syn or 1, len(synthetic))
        for which in self.own:
            initial, target = self._ends(number, which)
            length = squared_distance(initial, target)
            if not float(length) > 0:  # looked at where the snapshots lie, on the host: a GPU would be waited for
                raise UserError("an expert stands still between two snapshots: were its experts trained at all?")
            self._bring(which, _Way(initial, target, length))

    def _bring(self, which: int, way: _Way) -> None:
        def room(end: Named) -> Named:
            return {name: torch.empty_like(value, device=self.device) for name, value in end.items()}

        if which not in self._ways:
            length = torch.empty_like(way.length, device=self.device)
            self._ways[which] = _Way(room(way.initial), room(way.target), length)
        held = self._ways[which]
        held.length.copy_(uploaded(way.length, self.device))
        for there, here in ((held.initial, way.initial), (held.target, way.target)):
            for name, value in here.items():
                there[name].copy_(uploaded(value, self.device))

    def gradients(self, synthetic: SyntheticDataset, number: int) -> Iterator[Tensor]:
        """One student for each of ``experts_per_step`` experts; all experts come up before one comes again."""
        assert synthetic.step_size is not None
        labels = synthetic.labels.detach()
        current = _Set(
            synthetic.images().detach().to(self.dtype),
            labels.to(self.dtype) if labels.is_floating_point() else labels,
            synthetic.step_size.detach().to(self.dtype),
        )
        loss = torch.zeros((), dtype=self.dtype, device=self.device)
        for which in self.own:
            loss += self._add_gradient(synthetic, current, number, which)
        yield loss / self.experts_per_step

    def _add_gradient(self, synthetic: SyntheticDataset, current: _Set, number: int, which: int) -> Tensor:
        """Add one expert's share of the gradient to what is stored; its loss."""
        way = self._ways[which]
        steps = self._steps(current, number, which)
        path = [way.initial]
        for step in steps:
            path.append(self._step(path[-1], current, step))
        student = path.pop()
        adjoint = {name: value.sub(way.target[name]).mul_(2 / way.length) for name, value in student.items()}
        totals = _Set(*(torch.zeros_like(part, dtype=self.dtype) for part in vars(current).values()))
        for step in reversed(steps):
            adjoint = self._step_back(path.pop(), adjoint, current, step, totals)
        self._store(synthetic, totals)
        return squared_distance(student, way.target) / way.length

    def _ends(self, number: int, which: int) -> tuple[Named, Named]:
        """Parameters of the expert where the student starts and where it should end, on the experts' device."""
        turn, place = divmod(number * self.experts_per_step + which, len(self.experts))
        draw = self.streams.on_host()
        expert = int(torch.randperm(len(self.experts), generator=draw("experts", turn))[place])
        start = int(torch.randint(self.max_start_epoch, (), generator=draw("start epoch", number, which)))
        ends = (self.experts.parameters(expert, epoch) for epoch in (start, start + self.expert_epochs))
        initial, target = (plain(end, self.dtype, self.compute.memory_format) for end in ends)
        return initial, target

    def _steps(self, current: _Set, number: int, which: int) -> list[_Step]:
        """The batches of all steps; what is drawn for them is computed together, in few launches on a GPU."""
        generator = self.streams("batches", number, which)
        images, size = current.images, (current.images.shape[2], current.images.shape[3])
        pieces, batches, numbers = list[Tensor](), list[Tensor](), list[Numbers]()
        while len(batches) < self.syn_steps:
            if not pieces:
                order = torch.randperm(len(images), generator=generator, device=generator.device)
                pieces = list(order.split(self.batch_syn or len(images)))
            batches.append(pieces.pop().to(images.device))
            numbers.append(self.augment.numbers(generator, len(batches[-1]), size, shared_op=True))
        drawn = self.augment.of_numbers(numbers, size).parameters()
        of_batches = zip(*(part.to(images.device).split(list(map(len, batches))) for part in drawn), strict=True)
        return list(map(_Step, batches, of_batches))

    def _count(self, step: _Step) -> int:
        """Into how many pieces a batch falls."""
        return parts(len(step.index), self.compute.at_once) if self.chunk else 1

    def _pieces(self, current: _Set, step: _Step) -> Iterator[_Piece]:
        """A batch piece by piece."""
        count = self._count(step)
        drawn = [part.tensor_split(count) for part in step.drawn]
        for index, *own in zip(step.index.tensor_split(count), *drawn, strict=True):
            yield index, len(index) / len(step.index), (current.images[index], current.labels[index], *own)

    def _sum_of(self, step: _Step, first: Named) -> Named:
        """What the sum over a batch begins with: of several pieces a copy, for programs tell one tensor given twice."""
        return first if self._count(step) == 1 else {name: value.clone() for name, value in first.items()}

    @torch.no_grad()
    def _step(self, parameters: Named, current: _Set, step: _Step) -> Named:
        """The student's parameters after a step of gradient descent."""
        after = self._sum_of(step, parameters)
        for _, share, seen in self._pieces(current, step):
            after = self._descend(current.step_size * share, after, parameters, *seen)
        return after

    @torch.no_grad()
    def _step_back(self, parameters: Named, adjoint: Named, current: _Set, step: _Step, totals: _Set) -> Named:
        """Add what a step contributes to the gradients in ``totals``; the adjoint before the step."""
        before = self._sum_of(step, adjoint)
        for index, share, seen in self._pieces(current, step):
            weight = current.step_size * -share
            slope, before, by_images, by_labels = self._pull_back(weight, before, adjoint, parameters, *seen)
            totals.images.index_add_(0, index, by_images)
            if by_labels is not None:
                totals.labels.index_add_(0, index, by_labels)
            totals.step_size.sub_(slope, alpha=share)
        return before

    def _store(self, synthetic: SyntheticDataset, totals: _Set) -> None:
        """Add gradients with respect to images, labels and step size to what is stored, as far as it is learned."""
        every = torch.arange(len(synthetic), device=totals.images.device)
        for piece in every.split(self.compute.chunk):
            synthetic.backward(piece, totals.images[piece] / self.experts_per_step)
        for learned, gradient in ((synthetic.labels, totals.labels), (synthetic.step_size, totals.step_size)):
            if learned is not None and learned.requires_grad:
                share = (gradient / self.experts_per_step).to(learned.dtype)
                learned.grad = share if learned.grad is None else learned.grad + share


def check_batch(batch: int, images: int) -> None:
    """Refuse a synthetic batch larger than the set."""
    if batch > images:
        raise UserError(f"objective.batch_syn is {batch}, but the synthetic set has {images} images; set it to null")


def last_epoch(max_start_epoch: int, expert_epochs: int) -> int:
    """The last epoch of an expert that a student may have to reach."""
    return max_start_epoch - 1 + expert_epochs


def check_window(max_start_epoch: int, expert_epochs: int, epochs: int) -> None:
    """Refuse start epochs from which the expert's end lies past its last snapshot."""
    last = last_epoch(max_start_epoch, expert_epochs)
    if last > epochs:
        raise UserError(
            f"objective.max_start_epoch - 1 + objective.expert_epochs is {last}, past the experts' last snapshot, of "
            f"epoch {epochs}; set experts.epochs to {last} or null, or the window smaller"
        )


def _descent(gradient: Callable[..., Named]) -> Callable[..., Named]:
    """The program (weight, sum, parameters, images, labels, augmentation) -> sum - weight * gradient."""

    def program(weight: Tensor, total: Named, parameters: Named, *seen: Tensor) -> Named:
        found = gradient(parameters, {}, *seen)
        return {name: value - weight * found[name] for name, value in total.items()}

    return program


def _adjoint(gradient: Callable[..., Named]) -> Callable[..., tuple[Tensor, Named, Tensor, Tensor | None]]:
    """The program (weight, sum, adjoint, parameters, images, labels, augmentation) -> s, and its gradients weighted.

    s is the inner product of the loss gradient and the adjoint. That with respect to the parameters comes added to the
    sum; those with respect to images and, if they are soft, labels come as they are.
    """

    def program(
        weight: Tensor, total: Named, adjoint: Named, parameters: Named, images: Tensor, labels: Tensor, *drawn: Tensor
    ) -> tuple[Tensor, Named, Tensor, Tensor | None]:
        soft = labels.is_floating_point()

        def slope(parameters: Named, images: Tensor, labels: Tensor) -> Tensor:
            return inner_product(gradient(parameters, {}, images, labels, *drawn), adjoint)

        wanted = (0, 1, 2) if soft else (0, 1)
        found, value = grad_and_value(slope, argnums=wanted)(parameters, images, labels)
        before = {name: part + weight * found[0][name] for name, part in total.items()}
        return value, before, weight * found[1], weight * found[2] if soft else None

    return program
