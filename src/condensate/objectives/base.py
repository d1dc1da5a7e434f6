"""The interface of every matching objective."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from condensate.compute import Compute
from condensate.data import Split
from condensate.errors import UserError
from condensate.streams import HeldStreams, Streams
from condensate.synthetic import SyntheticDataset
from condensate.whitening import seen_alike


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one episode asks of the network.

    Args:
        features: Images that go through it without gradient.
        gradients: Images that go through it and back to pixels and parameters, thrice a forward's operations.
        real_gradients: Likewise real ones, back to the parameters alone, which may be rounded as features are.
        parts: Into how many equal parts that falls, which several processes can take apart.
    """

    features: int
    gradients: int
    real_gradients: int = 0
    parts: int = 1

    @property
    def forwards(self) -> int:
        """All of it, in images that go through the network once."""
        return self.features + 3 * (self.gradients + self.real_gradients)


@dataclass(frozen=True)
class Layers:
    """What decides the bytes that an episode holds, in float32.

    Args:
        image: Bytes of one image.
        largest: Of the largest layer's output for one image.
        every: Of all layers' outputs for one image.
        parameters: Of the network's parameters.
    """

    image: int
    largest: int
    every: int
    parameters: int


@dataclass(frozen=True)
class Room:
    """Bytes that one episode takes at its peak, beside the real images and the synthetic set.

    Of an image a network holds the outputs of all layers on the way, gradients with the way back once more where the
    program may be differentiated again, and twice that under a gradient of gradients.

    Args:
        activations: Of eager programs, and of those on tiles; others that are compiled take about half.
        lasting: Beside them, compiled or not.
    """

    activations: float
    lasting: int = 0


def check_alike(synthetic: SyntheticDataset, real: Split) -> None:
    """Refuse a set of other images than the real ones: their shape, classes, normalisation or whitening."""
    shape, classes = synthetic.parameterization.shape, len(synthetic.classes)
    if shape != real.shape or classes != len(real.classes):
        raise UserError(
            f"the set has images {shape} of {classes} classes, the real ones are {real.shape} of {len(real.classes)}; "
            "make the set for these images, of data.shape and data.classes, or match the classes wanted: data.only(...)"
        )
    if not seen_alike(synthetic, real):
        raise UserError(
            "the set and the real images must be normalised and whitened alike: give it the data's, "
            "SyntheticDataset(..., mean=data.mean, std=data.std, whitening=data.whitening)"
        )


Made = TypeVar("Made")


class OfLabels(Generic[Made]):
    """What is made of a set's labels, once for as long as they stay: to sort them, a GPU would be waited for.

    Args:
        make: From labels (n,).
    """

    def __init__(self, make: Callable[[Tensor], Made]) -> None:
        self.make = make
        self._made: tuple[Tensor, int, Made] | None = None

    def __call__(self, labels: Tensor) -> Made:
        """What was made of these labels as they are."""
        if self._made is None or self._made[0] is not labels or self._made[1] != labels._version:
            self._made = labels, labels._version, self.make(labels)
        return self._made[2]


def _unsaid(objective: type, what: str) -> UserError:
    return UserError(
        f"{objective.__name__} does not say what an episode takes, which plans and runs of recipes ask: give it a "
        f"class method {what}, as DistributionMatching has one, or condense without a recipe: condensate.condense"
    )


class Objective(ABC):
    """What of real and synthetic images is matched.

    One of your own needs ``gradients`` alone to be condensed by; ``planned`` and ``room`` are for recipes.
    Concrete objectives hold their hyper-parameters; of an episode they depend on its number alone, so that a resumed
    run equals an uninterrupted one. The first argument of their constructors is what is matched: a split of real
    images, or expert trajectories if ``matches_experts``; those learn labels and the step size, too, where asked to.
    The last positional one says which of several processes this is: an objective adds and yields its own share alone,
    scaled so that the shares of all add up to the whole.
    One that is ``private`` sees real images under noise that nobody can draw again: there, no episode repeats.
    Its programs take ``tiling`` times as long as a training step to be compiled on tiles, see ``Compute``.
    One that ``keeps`` can share what depends on the real images alone with other runs, see ``reuse``.
    """

    matches_experts: ClassVar[bool] = False
    private: ClassVar[bool] = False
    tiling: ClassVar[int] = 1
    keeps: ClassVar[bool] = False

    streams: Streams | HeldStreams

    def episode(self, synthetic: SyntheticDataset, number: int) -> Iterator[Tensor]:
        """Before each yield, the gradient has been added to the .grad of what ``synthetic`` stores.

        Yielded is the loss, detached, a scalar; the caller takes an optimiser step at each.
        """
        self.prepare(synthetic, number)
        yield from self.gradients(synthetic, number)

    def prepare(self, synthetic: SyntheticDataset, number: int) -> None:  # noqa: B027 (most need nothing)
        """What of an episode is the host's: what it brings to the device, at places that stay, or has read ahead."""

    @abstractmethod
    def gradients(self, synthetic: SyntheticDataset, number: int) -> Iterator[Tensor]:
        """What of ``episode`` is the device's: between prepared and yielded, the host reads and brings nothing."""

    @property
    def recordable(self) -> bool:
        """Whether ``gradients`` asks the same of the device in every episode, but for what generators give.

        Then a GPU can record it once and replay it, see ``Replayed``. Not so where the host must look at a result or
        bring something on the way.
        """
        return False

    def reuse(self, folder: Path, kind: dict[str, Any]) -> None:  # noqa: B027 (most have nothing to keep)
        """Share through ``folder`` what depends on the real images alone; one that keeps nothing ignores it.

        Args:
            folder: Of files that any run may write.
            kind: All that decides it beyond the objective's own options, plain JSON.
        """

    @classmethod
    def planned(cls, classes: int, images: int, **options: Any) -> Work:
        """What one episode asks of the network for a synthetic set of so many images, under the recipe's options.

        Raises:
            UserError: The objective does not say. Recipes need it, ``condense`` does not; likewise ``room``.
        """
        raise _unsaid(cls, "planned")

    @classmethod
    def room(cls, layers: Layers, compute: Compute, classes: int, images: int, **options: Any) -> Room:
        """What one episode holds at its peak, likewise: ``python -m benchmarks --only plan-...`` measures it."""
        raise _unsaid(cls, "room")

    @classmethod
    def guarantee(cls, classes: int, real: int, episodes: int, **options: Any) -> dict[str, Any] | None:
        """What so many episodes on so many real images give away of one at most, plain JSON; None: no guarantee."""
        return None
