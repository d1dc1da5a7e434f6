"""Episodes that a GPU records once and replays: the host launches one graph in place of hundreds of kernels."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condensate import recording
from condensate.objectives.base import Objective
from condensate.recording import BEFORE, Recorder, Recording, reason
from condensate.streams import HeldStreams
from condensate.synthetic import SyntheticDataset


@dataclass(frozen=True)
class _Part:
    """What was recorded of an episode up to a yield: its loss, and the gradients it writes, by what they are of."""

    recording: Recording
    loss: Tensor
    gradients: list[tuple[Tensor, Tensor]]


class Replayed:
    """The episodes of an objective, recorded in the third and replayed from there on.

    They are the same numbers: kernels, and the generators that they draw from, are those of the objective, which are
    seeded anew before each replay. Where an episode cannot be recorded it runs as it is.

    Args:
        objective: Its streams are held from here on, see ``HeldStreams``.
        recorder: How work on a device is recorded; as CUDA graphs if absent.
    """

    def __init__(self, objective: Objective, recorder: Callable[[torch.device], Recorder] | None = None) -> None:
        self.objective, self.recorder = objective, recorder or recording.cuda_recorder
        held = objective.streams
        self.streams = held if isinstance(held, HeldStreams) else HeldStreams(held)
        objective.streams = self.streams
        self._of: SyntheticDataset | None = None  # what was recorded is of this set alone
        self._before, self._yields = 0, 0
        self._parts: list[_Part] | None = None
        self._refused = False

    def episode(self, synthetic: SyntheticDataset, number: int) -> Iterator[Tensor]:
        """As of the objective; what was recorded replayed, once that is possible."""
        if synthetic is not self._of:
            self._of, self._before, self._parts = synthetic, 0, None
        drawn_there = self.streams.device.type == synthetic.labels.device.type  # else the host brings what it draws
        if self._refused or not drawn_there or not self.objective.recordable or self._before < BEFORE:
            yield from self._as_it_is(synthetic, number)
            return
        self.objective.prepare(synthetic, number)
        if self._parts is None:
            self._parts = self._recorded(synthetic, number)
        if self._parts is None:
            yield from self._as_it_is(synthetic, number)
            return
        self.streams.turn(number)
        for part in self._parts:
            part.recording.replay()
            for tensor, gradient in part.gradients:
                tensor.grad = gradient.clone() if tensor.grad is None else tensor.grad + gradient
            yield part.loss.clone()

    def forget(self) -> None:
        """Give the memory of what was recorded back, at once; see ``Repeated.anew``."""
        self._of, self._before, self._parts = None, 0, None

    def _as_it_is(self, synthetic: SyntheticDataset, number: int) -> Iterator[Tensor]:
        self._yields = 0
        for loss in self.objective.episode(synthetic, number):
            self._yields += 1
            yield loss
        self._before += 1

    def _recorded(self, synthetic: SyntheticDataset, number: int) -> list[_Part] | None:
        """The parts of an episode between its yields; None, from now on, where they cannot be recorded."""
        learned = [*synthetic.parameters(), synthetic.labels]
        there = [tensor.grad for tensor in learned]
        _forget(learned)
        parts: list[_Part] = []
        record, generators = self.recorder(synthetic.labels.device), list(self.streams.generators.values())
        self.streams.turn(number)
        self.streams.recording = True
        episode = self.objective.gradients(synthetic, number)
        losses: list[Tensor] = []
        try:
            for _ in range(self._yields):
                recorded = record(lambda: losses.append(next(episode)), generators)
                written = [(tensor, tensor.grad) for tensor in learned if tensor.grad is not None]
                parts.append(_Part(recorded, losses[-1], written))
                _forget(learned)
        except RuntimeError as error:
            self._refused = True
            self.streams.generators.clear()  # which are spoilt by a recording that fails
            warnings.warn(
                f"no episode can be recorded, so kernels are launched one by one: {reason(error)}", stacklevel=4
            )
            return None
        finally:
            episode.close()  # type: ignore[attr-defined]
            self.streams.recording = False
            for tensor, gradient in zip(learned, there, strict=True):
                tensor.grad = gradient
        return parts


def _forget(learned: Sequence[Tensor]) -> None:
    for tensor in learned:
        tensor.grad = None
