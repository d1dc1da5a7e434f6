"""The one loop that trains networks: on synthetic sets, on real data, for experts and for replay."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from condensate.allocation import give_back_free_memory
from condensate.errors import UserError
from condensate.examples import Examples, Held, ReadAhead
from condensate.losses import MeanLoss
from condensate.networks import Network
from condensate.recording import Repeated
from condensate.sgd import Sgd, check
from condensate.together import Together

# Of batches of a size; a training on a GPU of fewer does not record a step to replay it: that takes some thirty.
STEPS_RECORDED = 100


class Augmentation(Protocol):
    """What changes the images a network is trained on."""

    @property
    def name(self) -> str:
        """Which augmentation, as recipes name it."""

    @property
    def ops(self) -> Sequence[str]:
        """Its operators."""

    def unpaired(self, images: Tensor, *generators: torch.Generator) -> Tensor:
        """The images of a batch a generator, in equal parts, drawn for anew: (n, C, H, W) -> (n, C, H, W)."""


class Bookmark(Protocol):
    """Where a training stands, so that another process can go on with it."""

    def last(self) -> dict[str, Tensor] | None:
        """What was put last; None to begin anew."""

    def put(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Told after every epoch but the last; asks for the state where it is to be kept."""


def fit(
    network: Network | Together,
    examples: Examples,
    *,
    epochs: int,
    generator: torch.Generator | Sequence[torch.Generator],
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 256,
    join_last: bool = False,
    drop: bool = True,
    augment: Augmentation | None = None,
    replay: Examples | None = None,
    after_epoch: Callable[[int], None] | None = None,
    loss: MeanLoss | None = None,
    bookmark: Bookmark | None = None,
) -> None:
    """Train a network in place by SGD on cross-entropy.

    The schedule by which condensation papers score a set (Zhao et al., ICLR 2021): shuffled batches, the last one
    smaller, learning rate divided by ten at half. Unlike the released code: exactly ``epochs`` epochs, and the
    momentum is kept when the rate drops.

    Args:
        network: Trained as it stands; initialise it before. Several ``Together`` are trained as each would be alone.
        examples: Images and labels.
        epochs: Passes over the examples.
        generator: Orders the batches and draws the augmentation; one a network for networks together.
        lr: Learning rate of the first half.
        momentum: Of SGD.
        weight_decay: Of SGD, on all parameters.
        batch: Images a step, of each network.
        join_last: Whether a last batch of one image, which has no batch statistics, joins the one before under batch
            normalisation.
        drop: Whether to divide the learning rate by ten after ``epochs // 2`` epochs.
        augment: Drawn anew for every batch.
        replay: Remembered examples: every step takes as many of them, drawn at random, as new ones, and the loss is
            the mean of both (experience replay: Chaudhry et al., "On tiny episodic memories", 2019). For one network.
        after_epoch: Called with the epoch's number, from 0, after each.
        loss: The network's, compiled or in pieces, see ``MeanLoss``; absent: neither.
        bookmark: Where to go on from, and to keep where the training stands; it ends as one that was not stopped.

    Raises:
        UserError: It diverged, or a number has no meaning.
        ValueError: The loss is of another network.
    """
    check(momentum, lr=lr, weight_decay=weight_decay)
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    loss = loss or MeanLoss(network)
    if loss.network is not network:
        raise ValueError("the loss is another network's: make it of the one that is trained, MeanLoss(network, ...)")
    optimizer = Sgd(network.parameters(), momentum=momentum, weight_decay=weight_decay, fused=True)
    before = bookmark.last() if bookmark else None
    rate = lr  # of the epoch; a step that is recorded holds it
    sizes = _batch_sizes(len(examples), batch, joined=join_last and network.batch_statistics)

    def step(index: Tensor) -> Tensor:
        optimizer.zero_grad()
        images, labels = examples.images(index), examples.labels[index]
        if replay is not None:
            images, labels = _beside_remembered(images, labels, replay, generators[0])
        seen = augment.unpaired(images, *generators) if augment else images
        value = loss.add_gradient(seen, labels, len(generators))
        optimizer.step(rate)
        return value

    often = {size * len(generators) for size in sizes if epochs * sizes.count(size) >= STEPS_RECORDED}
    recorded = Repeated(step, generators) if often and _recordable(examples, replay, generators) else None
    value = torch.zeros((), device=examples.labels.device)
    try:
        for epoch in range(_restored(before, network, optimizer, generators) if before else 0, epochs):
            network.train()
            earlier, rate = rate, lr * 0.1 if drop and epoch >= epochs // 2 else lr
            if recorded and rate != earlier:
                optimizer.zero_grad()  # gradients lie in the recording's memory
                recorded.anew()
            batches = _shuffled(sizes, generators)
            if isinstance(examples, ReadAhead):
                examples.expect(batches)
            for index in batches:
                value = recorded(index) if recorded and len(index) in often else step(index)
            if after_epoch:
                after_epoch(epoch)
            if bookmark and epoch + 1 < epochs:
                bookmark.put(partial(_state, network, optimizer, generators, epoch + 1))
        diverged = not _finite([value, *network.parameters()])
    finally:
        optimizer.zero_grad()
        if recorded:
            recorded.anew()
    if diverged:
        raise UserError(
            f"training a network diverged at learning rate {lr:g}; try a smaller one, as in {lr / 10:g}: --evaluate.lr "
            "for networks that score or rehearse, --objective.lr_net for those that gradient matching trains, lr in "
            "Python"
        )


def _batch_sizes(count: int, batch: int, joined: bool) -> list[int]:
    """Of an epoch's batches; a last one of a single image is one with the batch before it if ``joined``."""
    sizes = [min(batch, count - first) for first in range(0, count, batch)]
    if joined and sizes[1:] and sizes[-1] == 1:
        sizes[-2:] = [batch + 1]
    return sizes


def _shuffled(sizes: list[int], generators: Sequence[torch.Generator]) -> list[Tensor]:
    """Indices of an epoch's batches, those of each generator's own order one after another."""
    orders = [torch.randperm(sum(sizes), generator=own, device=own.device) for own in generators]
    return [torch.cat(indices) for indices in zip(*(order.split(sizes) for order in orders), strict=True)]


def _finite(values: Sequence[Tensor]) -> bool:
    """Whether all numbers are; a GPU is waited for once."""
    return bool(torch.stack([value.detach().isfinite().all() for value in values]).all())


def _recordable(examples: Examples, replay: Examples | None, generators: Sequence[torch.Generator]) -> bool:
    """Whether a training step is the same work on a GPU every time, to which the host brings nothing."""
    read = [examples] if replay is None else [examples, replay]
    held = all(isinstance(part, Held) or (isinstance(part, ReadAhead) and part.in_memory) for part in read)
    there = all(device.type == "cuda" for device in (examples.labels.device, *(own.device for own in generators)))
    return held and there


def _state(
    network: Network | Together, optimizer: Sgd, generators: Sequence[torch.Generator], epochs: int
) -> dict[str, Tensor]:
    """All that decides how a training goes on after so many epochs."""
    state = {f"network.{name}": value.detach() for name, value in _tensors(network).items()}
    velocities = enumerate(optimizer.velocities)
    state |= {f"momentum.{number}": velocity for number, velocity in velocities if velocity is not None}
    state |= {f"generator.{number}": own.get_state() for number, own in enumerate(generators)}
    return state | {"epochs": torch.tensor(epochs)}


@torch.no_grad()
def _restored(
    state: dict[str, Tensor], network: Network | Together, optimizer: Sgd, generators: Sequence[torch.Generator]
) -> int:
    """Put a state back; the epochs that went before it."""
    for name, value in _tensors(network).items():
        value.copy_(state[f"network.{name}"])
    for number, parameter in enumerate(network.parameters()):
        if optimizer.momentum and parameter.requires_grad:
            velocity = torch.empty_like(parameter)  # laid out as the parameter is, which the fused step relies on
            optimizer.velocities[number] = velocity.copy_(state[f"momentum.{number}"])
    for number, own in enumerate(generators):
        own.set_state(state[f"generator.{number}"].cpu())
    return int(state["epochs"])


def _tensors(network: Network | Together) -> dict[str, Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())


def _beside_remembered(
    images: Tensor, labels: Tensor, replay: Examples, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """New images and as many remembered ones: the mean loss of all is the mean of the two means."""
    drawn = torch.randint(len(replay), (len(images),), generator=generator, device=generator.device)
    wanted = replay.labels[drawn]
    if wanted.ndim > labels.ndim:  # learned labels of the remembered
        labels = one_hot(labels, wanted.shape[1]).to(wanted.dtype)
    elif labels.ndim > wanted.ndim:
        wanted = one_hot(wanted, labels.shape[1]).to(labels.dtype)
    return torch.cat([images, replay.images(drawn)]), torch.cat([labels, wanted])


# Of images that are scored at once, so that memory does not grow with them. A CPU is as quick with fewer, or quicker,
# down to some eight images (docs/performance.md, "At a time").
PIXELS_SCORED, PIXELS_SCORED_ON_CPU = 512 * 32 * 32, 32 * 32 * 32


def scored_at_once(shape: Sequence[int], device: torch.device) -> int:
    """Images (C, H, W) that are scored at a time: at most 512, fewer the larger they are, and on a CPU."""
    pixels = shape[1] * shape[2]
    most = min(512, PIXELS_SCORED // pixels)
    return max(1, min(most, max(8, PIXELS_SCORED_ON_CPU // pixels)) if device.type == "cpu" else most)


@torch.no_grad()
def accuracy(network: Network, examples: Examples, batch: int | None = None) -> float:
    """Share of examples whose highest score is their class, the network in evaluation mode; 0..1.

    Args:
        network: Trained.
        examples: Images and labels.
        batch: Images at a time; ``scored_at_once`` if absent.

    Raises:
        UserError: Scores are not finite, so that there is no highest one.
    """
    network.eval()
    if examples.labels.device.type == "cpu":
        give_back_free_memory()  # of training, whose blocks are of other sizes
    right = torch.zeros((), dtype=torch.int64, device=examples.labels.device)
    finite = torch.ones((), dtype=torch.bool, device=right.device)
    order = torch.arange(len(examples), device=examples.labels.device)
    batches = order.split(batch or scored_at_once(examples.images(order[:1]).shape[1:], order.device))
    if isinstance(examples, ReadAhead):
        examples.expect(batches)
    for index in batches:
        scores = network(examples.images(index))
        right += (scores.argmax(1) == examples.labels[index]).sum()
        finite &= scores.isfinite().all()
    if not finite:
        raise UserError(
            "a trained network's scores are not finite: its training diverged; try a smaller learning rate: "
            "--evaluate.lr, or lr in Python"
        )
    return int(right) / len(examples)
