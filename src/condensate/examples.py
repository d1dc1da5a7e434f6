"""What networks are trained and scored on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


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

    @property
    def in_memory(self) -> bool:
        """Whether there is nothing to read ahead."""

    def expect(self, coming: Iterable[Tensor]) -> None:
        """Say at which indices images are read from now on."""


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
