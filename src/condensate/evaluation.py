"""What a synthetic set is worth: fresh networks are trained on it from scratch and scored on real images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch

from condensate.errors import UserError
from condensate.networks import Network, build
from condensate.ranks import ALONE, Ranks
from condensate.streams import Streams
from condensate.training import Augmentation, Examples, Held, accuracy, fit

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
) -> Iterator[Network]:
    """Fresh networks, each trained from scratch on ``examples``, one after another.

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
    """
    if repeats < 1 or epochs < 1:
        raise UserError(f"evaluation needs at least one network and one epoch, got {repeats} and {epochs}")
    sample = examples.images(examples.labels.new_zeros(1, dtype=torch.int64))
    shape = (sample.shape[1], sample.shape[2], sample.shape[3])
    if len(examples) * sample.numel() * sample.element_size() <= HELD_BYTES:
        examples = Held(examples.images().detach(), examples.labels)
    for repeat in range(start, repeats):
        generator = streams("evaluate", network, repeat)
        trained = build(network, shape, classes, generator, **(network_options or {}))
        fit(trained, examples, epochs=epochs, generator=generator, lr=lr, augment=augment)
        yield trained


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
    ranks: Ranks = ALONE,
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
        ranks: Processes that deal the networks out, all of which are told every accuracy.
    """

    def scored(start: int, stop: int) -> Iterator[float]:
        trained = train_networks(
            examples,
            classes,
            streams,
            network=network,
            network_options=network_options,
            repeats=stop,
            epochs=epochs,
            lr=lr,
            augment=augment,
            start=start,
        )
        for each in trained:
            yield accuracy(each, test)

    accuracies = list(done[:repeats])
    for found in _rounds(scored, len(accuracies), repeats, ranks):
        accuracies += found
        if after:
            after(accuracies)
    ops = tuple(augment.ops) if augment else ()
    return Score(network, epochs, ops, tuple(accuracies), augment.name if augment and ops else None)


def _rounds(
    scored: Callable[[int, int], Iterator[float]], start: int, stop: int, ranks: Ranks
) -> Iterator[Sequence[float]]:
    """What ``scored`` says of the numbers from ``start`` to below ``stop``, in order, as it comes in."""
    if ranks.world == 1:
        for found in scored(start, stop):
            yield [found]
        return
    for first in range(start, stop, ranks.world):
        own = min(first + ranks.rank, stop)
        yield [found for each in ranks.gather(list(scored(own, min(own + 1, stop)))) for found in each]
