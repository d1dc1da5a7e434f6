"""The one loop that trains networks: on synthetic sets, on real data, for experts and for replay."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from condensate.errors import UserError
from condensate.networks import Network


class Examples(Protocol):
    """What a network can be trained on: synthetic sets, splits of real data, unions of them."""

    @property
    def labels(self) -> Tensor:
        """Classes (n,), or soft labels (n, K)."""

    def __len__(self) -> int:
        """Number of images."""

    def images(self, index: Tensor | None = None) -> Tensor:
        """Normalised images at ``index``, all if None: (k,) -> (k, C, H, W)."""


@runtime_checkable
class ReadAhead(Protocol):
    """Examples that can be read ahead of their use."""

    def expect(self, coming: Iterable[Tensor]) -> None:
        """Say at which indices images are read from now on."""


class Augmentation(Protocol):
    """What changes the images a network is trained on."""

    @property
    def name(self) -> str:
        """Which augmentation, as recipes name it."""

    @property
    def ops(self) -> Sequence[str]:
        """Its operators."""

    def unpaired(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The images of a batch, drawn for anew: (n, C, H, W) -> (n, C, H, W)."""


@dataclass(frozen=True)
class Held:
    """Examples decoded once and held as they are.

    Args:
        decoded: Images (n, C, H, W).
        labels: Classes (n,) or soft labels (n, K).
    """

    decoded: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.decoded)

    def images(self, index: Tensor | None = None) -> Tensor:
        """Images at ``index``, all if None: (k,) -> (k, C, H, W)."""
        return self.decoded if index is None else self.decoded[index]


def fit(
    network: Network,
    examples: Examples,
    *,
    epochs: int,
    generator: torch.Generator,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch: int = 256,
    drop: bool = True,
    augment: Augmentation | None = None,
    replay: Examples | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train a network in place by SGD on cross-entropy.

    The schedule by which condensation papers score a set (Zhao et al., ICLR 2021): shuffled batches, the last one
    smaller, learning rate divided by ten at half. Unlike the released code: exactly ``epochs`` epochs, and the
    momentum is kept when the rate drops.

    Args:
        network: Trained as it stands; initialise it before.
        examples: Images and labels.
        epochs: Passes over the examples.
        generator: Orders the batches and draws the augmentation.
        lr: Learning rate of the first half.
        momentum: Of SGD.
        weight_decay: Of SGD, on all parameters.
        batch: Images a step.
        drop: Whether to divide the learning rate by ten after ``epochs // 2`` epochs.
        augment: Drawn anew for every batch.
        replay: Remembered examples: every step takes as many of them, drawn at random, as new ones, and the loss is
            the mean of both (experience replay: Chaudhry et al., "On tiny episodic memories", 2019).
        after_epoch: Called with the epoch's number, from 0, after each.
    """
    optimizer = SGD(network.parameters(), lr, momentum, weight_decay=weight_decay, fused=True)
    optimizer.zero_grad()
    for epoch in range(epochs):
        network.train()
        if drop and epoch == epochs // 2:
            optimizer.param_groups[0]["lr"] = lr * 0.1
        order = torch.randperm(len(examples), generator=generator, device=generator.device)
        if isinstance(examples, ReadAhead):
            examples.expect(order.split(batch))
        for index in order.split(batch):
            images, labels = examples.images(index), [examples.labels[index]]
            if replay is not None:
                drawn = torch.randint(len(replay), (len(index),), generator=generator, device=generator.device)
                images, labels = torch.cat([images, replay.images(drawn)]), [*labels, replay.labels[drawn]]
            if augment:
                images = augment.unpaired(images, generator)
            scores = network(images.detach()).split(len(index))
            losses = [cross_entropy(part, wanted.detach()) for part, wanted in zip(scores, labels, strict=True)]
            loss = torch.stack(losses).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if after_epoch:
            after_epoch(epoch)
    if epochs and not bool(loss.isfinite()):
        raise UserError(f"training a network diverged at learning rate {lr:g}; try a smaller one")


@torch.no_grad()
def accuracy(network: Network, examples: Examples, batch: int = 512) -> float:
    """Share of examples whose highest score is their class, the network in evaluation mode; 0..1."""
    network.eval()
    right = torch.zeros((), dtype=torch.int64, device=examples.labels.device)
    order = torch.arange(len(examples), device=examples.labels.device).split(batch)
    if isinstance(examples, ReadAhead):
        examples.expect(order)
    for index in order:
        right += (network(examples.images(index)).argmax(1) == examples.labels[index]).sum()
    return int(right) / len(examples)
