"""Named, independent random generators derived from one seed; and what must not be derived from any."""

import hashlib
import json
import math
import operator
import os

import torch
from torch import Tensor

from condensate.errors import UserError


class Streams:
    """Generators by name: ``Streams(seed)("real", episode, label)``.

    A stream depends on the seed and its names alone, never on what was drawn before or elsewhere, so a resumed
    run and a run over several processes draw what one uninterrupted process draws. The global generators of
    PyTorch, NumPy and Python are neither read nor changed.

    Args:
        seed: Any integer.
        device: Where the generators draw. CPU and CUDA generators give different numbers.
        prefix: Names that stand before all others.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu", prefix: tuple[str | int, ...] = ()) -> None:
        try:
            self.seed = operator.index(seed)
        except TypeError as error:
            raise UserError(f"seed must be a whole number, got {seed!r}") from error
        self.device = torch.device(device)
        self.prefix = prefix

    def __call__(self, *names: str | int) -> torch.Generator:
        """A fresh generator for these names; the same names give the same numbers again."""
        return torch.Generator(self.device).manual_seed(self.key(*names))

    def key(self, *names: str | int) -> int:
        """The seed of the generator for these names."""
        text = json.dumps([self.seed, *self.prefix, *names])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def under(self, *names: str | int) -> "Streams":
        """The streams of a part of a run: ``under("step", 3)("real")`` is ``self("step", 3, "real")``."""
        return Streams(self.seed, self.device, (*self.prefix, *names))

    def on_host(self) -> "Streams":
        """The same streams drawn on the CPU, for what the host decides: reading a number off a GPU waits for it."""
        return Streams(self.seed, "cpu", self.prefix)


class HeldStreams:
    """The streams of an objective, whose generators are held from one episode to the next.

    Of names that differ in the number of the episode alone, the second one, the generator is the same object, seeded
    anew: what a GPU has recorded of an episode draws from it, and draws another episode's numbers after ``turn``.

    Args:
        streams: Whose numbers are given.
    """

    def __init__(self, streams: Streams) -> None:
        self.streams, self.device = streams, streams.device
        self.generators: dict[tuple[str | int, ...], torch.Generator] = {}
        self.recording = False
        self._asked: set[tuple[str | int, ...]] = set()

    def __call__(self, *names: str | int) -> torch.Generator:
        """The generator for these names, as ``Streams`` gives it; while an episode is recorded, as it stands."""
        place = (names[0], *names[2:])
        if self.recording:
            if place in self._asked:
                raise RuntimeError(f"{names} is drawn from twice in an episode, which cannot be recorded")
            if place not in self.generators:
                raise RuntimeError(f"{names} was not drawn from in the episodes before, so this one is another one")
            self._asked.add(place)
            return self.generators[place]
        if place not in self.generators:
            self.generators[place] = self.streams(*names)
        return self.generators[place].manual_seed(self.streams.key(*names))

    def turn(self, number: int) -> None:
        """Let every generator held give the numbers of an episode, from the first one on."""
        self._asked.clear()
        for place, generator in self.generators.items():
            generator.manual_seed(self.streams.key(place[0], number, *place[1:]))

    def on_host(self) -> Streams:
        """See ``Streams``; these generators are not held, for what the host draws is not recorded."""
        return self.streams.on_host()


class Secret:
    """Random numbers that nobody can draw again: from the operating system, which keeps them for no one.

    For noise that hides something. PyTorch's generators will not do there, for their seeds can be tried out: on the
    CPU two seeds give the same numbers if they agree in their lowest 32 bits.
    """

    def uniform(self, count: int) -> Tensor:
        """Numbers (count,) from 0 to below 1, float64, multiples of 2**-53; on the CPU."""
        if not count:
            return torch.zeros(0, dtype=torch.float64)
        bits = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
        return (bits & (2**53 - 1)) / float(2**53)

    def normal(self, count: int) -> Tensor:
        """Standard normal numbers (count,), float64, by Box and Muller's method, at most 8.6 either way; on the CPU."""
        radius, angle = 1 - self.uniform(count), self.uniform(count)
        return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
