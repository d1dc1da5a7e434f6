"""Images that stay encoded on disk: decoded as they are read, and ahead of that where it is known what comes."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from condensate.data.imagefile import ImageError
from condensate.data.pool import Job, Pool
from condensate.data.raw import RawImages
from condensate.errors import UserError

AHEAD = 1 << 24  # bytes decoded before they are read, and up to one reading more...
MOST = 1 << 13  # ...and images, where they are small


class _Coming(NamedTuple):
    """A reading that was announced, and is being decoded."""

    file: int
    rows: bytes
    job: Job


class Reader:
    """Reads images of the files of one data set; what was announced is decoded meanwhile.

    Args:
        pool: Decodes.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool, self.waited = pool, 0.0
        self._announced: Iterator[tuple[int, np.ndarray, bool]] = iter(())
        self._coming: deque[_Coming] = deque()
        self._ahead = 0  # images that are coming

    def read(self, file: int, rows: np.ndarray, pin: bool = False) -> Tensor:
        """The images of ``rows`` (k,), int64, of a file: (k, C, H, W), uint8, on the CPU.

        Raises:
            UserError: An image cannot be decoded.
            RuntimeError: A process that decodes died.
        """
        began, key = time.perf_counter(), (file, rows.tobytes())
        try:
            job = self._come(key) or self.pool.decode(file, rows, first=True, pin=pin)
            self._go_on()
            return job.result()
        except ImageError as error:
            message, row = error.args
            raise UserError(f"{self.pool.rows[file].name(row)} {message}") from error
        finally:
            self.waited += time.perf_counter() - began

    def expects(self, file: int, rows: np.ndarray) -> bool:
        """Whether these are the rows that were announced to be read next; without processes nothing needs to be."""
        return not self.pool.workers or (bool(self._coming) and self._coming[0][:2] == (file, rows.tobytes()))

    def expect(self, announced: Iterator[tuple[int, np.ndarray, bool]]) -> None:
        """What is read from now on (file, rows, pinned), in place of what was announced before."""
        if self.pool.workers:
            self.pool.forget({coming.job for coming in self._coming})
            self._coming.clear()
            self._ahead, self._announced = 0, announced
            self._go_on()

    def _go_on(self) -> None:
        """Have decoded what is announced, up to the bytes that may be held."""
        most = min(AHEAD // math.prod(self.pool.shape), MOST)
        while self._ahead < most and (following := next(self._announced, None)) is not None:
            file, rows, pin = following
            self._coming.append(_Coming(file, rows.tobytes(), self.pool.decode(file, rows, pin=pin)))
            self._ahead += len(rows)

    def _come(self, key: tuple[int, bytes]) -> Job | None:
        """The announced reading of these rows, begun before; None if there is none. Those before it are given up."""
        found = next((place for place, coming in enumerate(self._coming) if coming[:2] == key), None)
        if found is None:
            return None
        passed = [self._coming.popleft() for _ in range(found + 1)]
        self._ahead -= sum(len(coming.rows) // 8 for coming in passed)
        self.pool.forget({coming.job for coming in passed[:-1]})
        return passed[-1].job


class OnDisk(RawImages):
    """Images of an Arrow file.

    Args:
        reader: Of the data set.
        file: Number of the file.
        rows: (N,), int64, on the CPU: which of its images, and in what order.
        device: Where they are when they are read.
    """

    def __init__(self, reader: Reader, file: int, rows: Tensor, device: torch.device | str = "cpu") -> None:
        self.reader, self.file, self.rows = reader, file, rows
        self.shape = reader.pool.shape
        self.device = torch.empty(0, device=device).device

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def read(self, index: Tensor | None = None) -> Tensor:
        """Images at ``index``, decoded; all if None, which holds them all."""
        rows = self.rows if index is None else self.rows[index.cpu()]
        return self.reader.read(self.file, rows.numpy(), self._pinned).to(self.device, non_blocking=True)

    def subset(self, index: Tensor) -> "OnDisk":
        """The images at ``index``: their rows, no copy."""
        return OnDisk(self.reader, self.file, self.rows[index.cpu()], self.device)

    def to(self, device: torch.device | str) -> "OnDisk":
        """The same images, copied to ``device`` as they are read."""
        moved = OnDisk(self.reader, self.file, self.rows, device)
        return self if moved.device == self.device else moved

    def expects(self, index: Tensor) -> bool:
        """Whether ``index`` was announced to be read next."""
        return self.reader.expects(self.file, self.rows[index.cpu()].numpy())

    def expect(self, coming: Iterable[Tensor]) -> None:
        """Begin to decode what is read from now on, some ahead of its reading."""
        self.reader.expect((self.file, self.rows[index.cpu()].numpy(), self._pinned) for index in coming)

    @property
    def waited(self) -> float:
        """Seconds that reading took so far, of all splits of the data set."""
        return self.reader.waited

    @property
    def _pinned(self) -> bool:
        return self.device.type == "cuda"
