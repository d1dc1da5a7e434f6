"""What a synthetic set is worth: fresh networks are trained on it from scratch and scored on real images."""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from condensate.compute import Compute
from condensate.errors import UserError
from condensate.examples import Examples, Held
from condensate.losses import MeanLoss
from condensate.networks import Network, build
from condensate.ranks import ALONE, Ranks
from condensate.streams import Streams
from condensate.together import Together
from condensate.training import Augmentation, Bookmark, accuracy, fit
from condensate.whitening import seen_alike

HELD_BYTES = 2**28


@dataclass(frozen=True)
class Score:
    """Accuracies 0..1 of networks trained alike but for their seed, each after its last epoch.

    Args:
        network: Which network, as in the recipe.
        epochs: How long each was trained.
        augment: Operators they were trained with.
        accuracies: One a network.
        augmentation: Whose operators they are, as in the recipe; None without any.
    """

    network: str
    epochs: int
    augment: tuple[str, ...]
    accuracies: tuple[float, ...]
    augmentation: str | None = None

    @property
    def mean(self) -> float:
        """Mean over networks."""
        return mean(self.accuracies)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1) over networks; None for one network."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None


def train_networks(
    examples: Examples,
    classes: int,
    streams: Streams,
    *,
    network: str = "convnet",
    network_options: dict[str, Any] | None = None,
    repeats: int = 20,
    epochs: int = 1000,
    lr: float = 0.01,
    augment: Augmentation | None = None,
    start: int = 0,
    every: int = 1,
    together: int = 1,
    compute: Compute | None = None,
    bookmark: Callable[[int], Bookmark] | None = None,
) -> Iterator[Network]:
    """Fresh networks, each trained from scratch on ``examples``.

    Args:
        examples: What to train on: a synthetic set, or real data.
        classes: Number of classes a network tells apart, at least those of ``examples``.
        streams: Network ``k`` draws from the stream ("evaluate", network, k) alone.
        network: Its name.
        network_options: Its constructor's keywords.
        repeats: How many networks.
        epochs: Passes over ``examples``, see ``fit``.
        lr: Learning rate of the first half.
        augment: Augmentation while training.
        start: The first one to train, those before it left out.
        every: Trained are ``start``, ``start + every`` and so on.
        together: Networks trained at a time; what a network comes to does not depend on it beyond rounding.
        compute: Whether the training step is compiled, and in which precision it multiplies.
        bookmark: Keeps where the training of the networks from a number on stands, see ``fit``.
    """
    _check(repeats, epochs, lr)
    _check_labels("the images to train on", examples.labels, classes)
    sample = examples.images(examples.labels.new_zeros(1, dtype=torch.int64))
    shape = (sample.shape[1], sample.shape[2], sample.shape[3])
    if len(examples) * sample.numel() * sample.element_size() <= HELD_BYTES:
        examples = Held(examples.images().detach(), examples.labels)
    compute = compute or Compute()
    pupils = _Pupils(network, network_options or {}, shape, classes, streams)
    lessons = _Lessons(examples, epochs, lr, augment, compute, bookmark)
    numbers = range(start, repeats, every)
    yield from _together(pupils, lessons, numbers, together) if together > 1 else _alone(pupils, lessons, numbers)


@dataclass(frozen=True)
class _Pupils:
    """Networks of one kind, every one with draws of its own."""

    network: str
    options: dict[str, Any]
    shape: tuple[int, int, int]
    classes: int
    streams: Streams

    def generator(self, number: int) -> torch.Generator:
        """What network ``number`` draws from."""
        return self.streams("evaluate", self.network, number)

    def made(self, generator: torch.Generator) -> Network:
        """One that is initialised by it."""
        return build(self.network, self.shape, self.classes, generator, **self.options)


@dataclass(frozen=True)
class _Lessons:
    """How every network is trained."""

    examples: Examples
    epochs: int
    lr: float
    augment: Augmentation | None
    compute: Compute
    bookmark: Callable[[int], Bookmark] | None

    def give(self, pupil: Network | Together, generator: Any, first: int, loss: MeanLoss) -> None:
        """Train a network, or several together of which ``first`` is the first one's number."""
        fit(
            pupil,
            self.examples,
            epochs=self.epochs,
            generator=generator,
            lr=self.lr,
            join_last=True,
            augment=self.augment,
            loss=loss,
            bookmark=self.bookmark(first) if self.bookmark else None,
        )


def _alone(pupils: _Pupils, lessons: _Lessons, numbers: range) -> Iterator[Network]:
    """One after another, in the one network that the program knows: it is compiled once."""
    one = pupils.made(pupils.streams("program"))
    loss = MeanLoss.laid_out(one, lessons.compute, pupils.shape, lessons.examples.labels.device)
    for number in numbers:
        generator = pupils.generator(number)
        one.reset_(generator)
        lessons.give(one, generator, number, loss)
        yield deepcopy(one).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _together(pupils: _Pupils, lessons: _Lessons, numbers: range, most: int) -> Iterator[Network]:
    """In groups as even as can be: the work of a small one fills no GPU, and is compiled anew."""
    memory_format = lessons.compute.memory_format if lessons.examples.labels.device.type == "cuda" else None
    if lessons.compute.compiled:
        torch._dynamo.reset()  # see ``MeanLoss.laid_out``
    while numbers:
        groups = -(-len(numbers) // most)
        size = -(-len(numbers) // groups)
        generators = [pupils.generator(number) for number in numbers[:size]]
        networks = [pupils.made(generator) for generator in generators]
        stack = Together(networks, memory_format)
        lessons.give(stack, generators, numbers[0], MeanLoss(stack, lessons.compute))
        numbers = numbers[size:]
        stack.unstack_()
        yield from networks


def evaluate(
    examples: Examples,
    test: Examples,
    classes: int,
    streams: Streams,
    *,
    network: str = "convnet",
    network_options: dict[str, Any] | None = None,
    repeats: int = 20,
    epochs: int = 1000,
    lr: float = 0.01,
    augment: Augmentation | None = None,
    done: Sequence[float] = (),
    after: Callable[[Sequence[float]], None] | None = None,
    together: int = 1,
    compute: Compute | None = None,
    ranks: Ranks = ALONE,
    bookmark: Callable[[int], Bookmark] | None = None,
) -> Score:
    """Train ``repeats`` fresh networks on ``examples`` and score each once, after its last epoch, on ``test``.

    Args:
        examples: What to train on: a synthetic set, or real data.
        test: Real images the networks are scored on.
        classes: Number of classes.
        streams: Network ``k`` draws from the stream ("evaluate", network, k) alone.
        network: Its name.
        network_options: Its constructor's keywords.
        repeats: How many networks.
        epochs: Passes over ``examples``, see ``fit``.
        lr: Learning rate of the first half.
        augment: Augmentation while training.
        done: Accuracies of the first networks, scored before, to go on after them.
        after: Called with the accuracies so far after each network, or round of a network a process.
        together: Networks trained at a time, see ``train_networks``.
        compute: How they are trained, see ``train_networks``.
        ranks: Processes that deal the networks out, all of which are told every accuracy.
        bookmark: See ``train_networks``.

    Raises:
        UserError: For labels of more classes, and images normalised otherwise than those trained on.
    """
    _check(repeats, epochs, lr)
    _check_labels("the images to score on", test.labels, classes)
    if not seen_alike(examples, test):
        raise UserError(
            "the images to score on must be normalised and whitened as those to train on are, as by "
            "data.test.normalised(synthetic.mean, synthetic.std) or data.seen_through(synthetic.whitening).test"
        )
    accuracies = list(done[:repeats])
    start = len(accuracies)
    trained = train_networks(
        examples,
        classes,
        streams,
        network=network,
        network_options=network_options,
        repeats=repeats,
        epochs=epochs,
        lr=lr,
        augment=augment,
        start=start + ranks.rank,
        every=ranks.world,
        together=together,
        compute=compute,
        bookmark=bookmark,
    )
    for _ in range(start, repeats, ranks.world):
        own = [accuracy(each, test) for each in islice(trained, 1)]  # none in a last round of fewer than processes
        accuracies += [found for each in ranks.gather(own) for found in each]
        if after:
            after(accuracies)
    ops = tuple(augment.ops) if augment else ()
    return Score(network, epochs, ops, tuple(accuracies), augment.name if augment and ops else None)


def _check(repeats: int, epochs: int, lr: float) -> None:
    if repeats < 1 or epochs < 1:
        raise UserError(f"evaluation needs at least one network and one epoch, got {repeats} and {epochs}")
    if not 0 < lr < math.inf:
        raise UserError(f"evaluation needs a learning rate above 0 and finite, got {lr}")


def _check_labels(kind: str, labels: Tensor, classes: int) -> None:
    if not len(labels):
        raise UserError(f"{kind} are none; expected at least one")
    if labels.ndim == 1 and labels.min() < 0:
        raise UserError(f"the labels of {kind} must be classes from 0, got {int(labels.min())}")
    told = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    if told > classes or (labels.ndim == 2 and told < classes):
        raise UserError(f"the labels of {kind} are of {told} classes, but the networks are to tell {classes} apart")
