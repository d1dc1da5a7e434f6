"""Named, independent random generators derived from one seed."""

import hashlib
import json

import torch


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
        self.seed = int(seed)
        self.device = torch.device(device)
        self.prefix = prefix

    def __call__(self, *names: str | int) -> torch.Generator:
        """A fresh generator for these names; the same names give the same numbers again."""
        text = json.dumps([self.seed, *self.prefix, *names])
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        return torch.Generator(self.device).manual_seed(key)

    def under(self, *names: str | int) -> "Streams":
        """The streams of a part of a run: ``under("step", 3)("real")`` is ``self("step", 3, "real")``."""
        return Streams(self.seed, self.device, (*self.prefix, *names))
