"""From encoded images to one uint8 tensor."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condensate.data.imagefile import ImageError, pixels
from condensate.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """One split whose images are still files.

    Attributes:
        labels: (N,) of whatever type was found; checked before anything is decoded.
        content: The file of image i.
        where: What to call image i in a message.
        walk: All files in order, without holding many; absent where ``content`` holds none.
    """

    labels: np.ndarray
    content: Callable[[int], bytes]
    where: Callable[[int], str]
    walk: Callable[[], Iterator[bytes]] | None = None

    def contents(self) -> Iterator[bytes]:
        """All files in order, one after another."""
        return map(self.content, range(len(self.labels))) if self.walk is None else self.walk()


@dataclass(frozen=True)
class Source:
    """Data found but not read.

    Attributes:
        digest: Differs whenever what would be read differs; reads every file.
        stamp: Differs whenever a file is another, or was changed since; reads none.
        read: The training split, the test split, and the class names if there are any.
    """

    digest: Callable[[], str]
    stamp: Callable[[], str]
    read: Callable[[], tuple[Encoded, Encoded, Sequence[str] | None]]


def decode(train: Encoded, test: Encoded, size: int | None, channels: int | None) -> tuple[Tensor, Tensor]:
    """Both splits as tensors (N, C, H, W), uint8, all of the shape of the first training image.

    Raises:
        UserError: If an image cannot be read, or differs from the first in a way that no option mends.
    """
    first = _pixels(train, 0, size, channels).shape
    # Pillow frees the interpreter only while it decodes. Of small images that is too little: measured with two threads
    # instead of one, 32x32 pixels take 1.8 times as long, 64x64 1.2 times as long, 128x128 (5 kB) 0.8 times.
    threads = min(8, os.cpu_count() or 1) if len(train.content(0)) > 4096 else 1

    def all_of(split: Encoded) -> Tensor:
        count = len(split.labels)
        decoded = torch.empty(count, first[2], first[0], first[1], dtype=torch.uint8)
        target = decoded.numpy()

        def fill(start: int) -> None:
            for row in range(start, min(start + 256, count)):
                image = _pixels(split, row, size, channels)
                if image.shape != first:
                    raise unlike(split.where(row), image.shape, train.where(0), first)
                target[row] = image.transpose(2, 0, 1)

        # The error of the first wrong image is the one raised.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(0, count, 256)))
        return decoded

    return all_of(train), all_of(test)


def _pixels(split: Encoded, row: int, size: int | None, channels: int | None) -> np.ndarray:
    """Image ``row`` as (H, W, C), uint8."""
    try:
        return pixels(split.content(row), size, channels)
    except ImageError as error:
        raise UserError(f"{split.where(row)} {error}") from error
    except OSError as error:
        raise UserError(f"{split.where(row)} cannot be read: {error.strerror or error}") from error


def unlike(where: str, shape: Sequence[int], first: str, expected: Sequence[int]) -> UserError:
    """The error for an image (H, W, C) that is not as the first one is."""
    if shape[2] != expected[2]:
        return UserError(
            f"{where} has {shape[2]} channel(s) but {first} has {expected[2]}; "
            "make all images alike with --data.channels 3 or --data.channels 1"
        )
    return UserError(
        f"{where} has {shape[0]}x{shape[1]} pixels (height x width) but {first} has {expected[0]}x{expected[1]}; "
        f"make all images alike with --data.size S, for instance --data.size {min(*expected[:2], 32)}; larger ones "
        "take longer: condensate plan tells how long"
    )
