"""Pixels as they came, before any normalisation: held in memory, or read from somewhere as they are needed."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK = 1024  # images gone through at once, where all are...
CHUNK_BYTES = 1 << 22  # ...and are not in memory before


class RawImages(ABC):
    """Images of one shape, uint8, wherever they are; whoever holds them reads some by their index.

    Attributes:
        shape: Of one image, (C, H, W).
        device: Where they are when they are read.
    """

    shape: tuple[int, int, int]
    device: torch.device

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: Tensor | None = None) -> Tensor:
        """Images at ``index`` (k,) -> (k, C, H, W), uint8, on the device; all if None. Not to be changed."""

    @abstractmethod
    def subset(self, index: Tensor) -> "RawImages":
        """The images at ``index`` (k,)."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "RawImages":
        """The same images on ``device``: itself if they are there already."""

    @abstractmethod
    def expects(self, index: Tensor) -> bool:
        """Whether it is known that ``index`` is read next; where nothing needs to be known, it always is."""

    @abstractmethod
    def expect(self, coming: Iterable[Tensor]) -> None:
        """Say what is read from now on, index by index, in place of what was said before; it may go on without end."""

    @property
    @abstractmethod
    def waited(self) -> float:
        """Seconds that reading took so far."""

    def chunks(self) -> Iterator[Tensor]:
        """All images in order, at most 1,024 at once: (k, C, H, W), uint8, on the device."""
        parts = torch.arange(len(self)).split(min(CHUNK, max(CHUNK_BYTES // math.prod(self.shape), 1)))
        self.expect(parts)
        return map(self.read, parts)


class InMemory(RawImages):
    """Images held as one tensor.

    Args:
        pixels: (N, C, H, W), uint8; or floating point, as synthetic images are, on the same scale of 0 to 255.
    """

    def __init__(self, pixels: Tensor) -> None:
        self.pixels, self.device = pixels, pixels.device
        channels, height, width = pixels.shape[1:]
        self.shape = channels, height, width

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def read(self, index: Tensor | None = None) -> Tensor:
        """Images at ``index``, or the tensor itself."""
        return self.pixels if index is None else self.pixels.index_select(0, index.to(self.device))

    def subset(self, index: Tensor) -> "InMemory":
        """The images at ``index``, copied."""
        return InMemory(self.pixels[index.to(self.device)])

    def to(self, device: torch.device | str) -> "InMemory":
        """The same images on ``device``."""
        moved = self.pixels.to(device)
        return self if moved is self.pixels else InMemory(moved)

    def expects(self, index: Tensor) -> bool:
        """Nothing needs to be known."""
        return True

    def expect(self, coming: Iterable[Tensor]) -> None:
        """Nothing is done."""

    @property
    def waited(self) -> float:
        """Nothing, for they are there."""
        return 0.0

    def chunks(self) -> Iterator[Tensor]:
        """All images in order, not copied."""
        return iter(self.pixels.split(CHUNK))


def measure(images: Tensor | RawImages) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (divisor N) per channel of images (N, C, H, W), uint8, on the scale 0 to 1; exact."""
    raw = images if isinstance(images, RawImages) else InMemory(images)
    frequencies = np.zeros((raw.shape[0], 256), np.int64)
    for chunk in raw.chunks():
        # NumPy counts on one thread: several wait for each other on a busy machine, 10 times as long as this takes.
        for few in chunk.cpu().split(64):  # of which it makes numbers of eight bytes
            for of_channel, seen in zip(frequencies, few.numpy().swapaxes(0, 1), strict=True):
                of_channel += np.bincount(seen.flatten(), minlength=256)
    means, stds = [], []
    for of_channel in frequencies:
        often = list(enumerate(of_channel.tolist()))
        total = sum(count for _, count in often)
        first = sum(count * value for value, count in often)
        second = sum(count * value**2 for value, count in often)
        means.append(first / (255 * total))
        stds.append(math.sqrt(second * total - first**2) / (255 * total))
    return means, stds
