"""Work that a GPU records once and replays: the host launches one graph in place of hundreds of kernels."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from condensate.collecting import nothing_collected

# Times that work is done as it is before: in the first programs are compiled, in both libraries choose their kernels.
BEFORE = 2


# Kinds of work, by where they are written, that could not be recorded in this process.
REFUSED: set[tuple[str, str]] = set()


class Recording(Protocol):
    """Work that was recorded."""

    def replay(self) -> None:
        """Do it again, in the same places of memory."""


Recorder = Callable[[Callable[[], None], Sequence[torch.Generator]], Recording]


# The last release in which a graph must be told of the generators it draws from; later ones find them.
REGISTERS = (2, 13)


@cache
def _recorded_on(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which work is recorded; the library's own is of the device that recorded first."""
    return torch.cuda.Stream(device)


def cuda_recorder(device: torch.device) -> Recorder:
    """Records work on a GPU as CUDA graphs, which share their memory and are replayed in the order of recording."""
    with torch.cuda.device(device):
        pool: Any = torch.cuda.graph_pool_handle()
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])

    def record(work: Callable[[], None], generators: Sequence[torch.Generator]) -> Recording:
        # a graph that is freed while another one is recorded would end the recording
        with torch.cuda.device(device), nothing_collected():
            graph: Any = torch.cuda.CUDAGraph()
            for generator in generators if release <= REGISTERS else ():
                graph.register_generator_state(generator)
            usual = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=pool, stream=_recorded_on(device)):
                    work()
            finally:
                torch.cuda.set_stream(usual)  # a recording that fails does not leave its own
        recorded: Recording = graph
        return recorded

    return record


def reason(error: BaseException) -> str:
    """Why a recording failed: what ended the work, where the end of the recording failed for it."""
    return str(error.__context__ or error)


class Repeated:
    """Work on a GPU that is asked for again and again: recorded in the third time, replayed from there on.

    It must ask the same of the GPU each time, but for what it is given and what the generators give, and read nothing
    on the host. Where it cannot be recorded it is done as it is, and so is the like of it from then on, for a recording
    that fails may keep its memory. Of every shape that is given there is a recording of
    its own. What the work gives is good until it is done the next time.

    Args:
        work: From a tensor to a tensor.
        generators: It draws from those in this list, which go on from one time to the next. A generator is spoilt by a
            recording that fails: then another one that goes on likewise takes its place in the list.
        recorder: How work on a device is recorded; as CUDA graphs if absent.
    """

    def __init__(
        self,
        work: Callable[[Tensor], Tensor],
        generators: list[torch.Generator],
        recorder: Callable[[torch.device], Recorder] | None = None,
    ) -> None:
        self.work, self.generators, self.recorder = work, generators, recorder or cuda_recorder
        self._done: dict[torch.Size, int] = {}  # how often, by shape
        self._recorded: dict[torch.Size, tuple[Recording, Tensor, Tensor]] = {}  # with what is given and what it gives
        self._kind = work.__module__, work.__qualname__

    def __call__(self, given: Tensor) -> Tensor:
        """Do it."""
        shape = given.shape
        self._done[shape] = self._done.get(shape, 0) + 1
        if self._kind in REFUSED or self._done[shape] <= BEFORE:
            return self.work(given)
        if shape not in self._recorded and not self._record(given):
            return self.work(given)
        recording, held, result = self._recorded[shape]
        held.copy_(given)
        recording.replay()
        return result

    def _record(self, given: Tensor) -> bool:
        """Record the work of the shape given; whether that was possible."""
        held, made = given.clone(), list[Tensor]()
        states = [generator.get_state() for generator in self.generators]
        try:  # memory of its own: it may not be taken for another recording once all in it are forgotten
            recording = self.recorder(given.device)(lambda: made.append(self.work(held)), self.generators)
        except RuntimeError as error:
            REFUSED.add(self._kind)
            self.generators[:] = [
                torch.Generator(generator.device).set_state(state)
                for generator, state in zip(self.generators, states, strict=True)
            ]
            warnings.warn(f"this cannot be recorded, so kernels are launched one by one: {reason(error)}", stacklevel=4)
            return False
        self._recorded[given.shape] = recording, held, made[0]
        return True

    def anew(self) -> None:
        """Forget what was recorded, for the host decided something else, or it is not wanted any more.

        Not left to the garbage collector: that may free a graph while another one is recorded, which ends that.
        """
        self._recorded.clear()
