"""From encoded images to one uint8 tensor."""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from condensate.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB"}  # what is read as it is, and as what
_DEEP = ("I", "F")  # 16 and 32 bits a pixel: "I;16" and so on


@dataclass(frozen=True)
class Encoded:
    """One split whose images are still files.

    Attributes:
        labels: (N,) of whatever type was found; checked before anything is decoded.
        content: The file of image i.
        where: What to call image i in a message.
    """

    labels: np.ndarray
    content: Callable[[int], bytes]
    where: Callable[[int], str]


@dataclass(frozen=True)
class Source:
    """Data found but not read.

    Attributes:
        digest: Differs whenever what would be read differs.
        read: The training split, the test split, and the class names if there are any.
    """

    digest: str
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
        pixels = torch.empty(count, first[2], first[0], first[1], dtype=torch.uint8)
        target = pixels.numpy()

        def fill(start: int) -> None:
            for row in range(start, min(start + 256, count)):
                image = _pixels(split, row, size, channels)
                if image.shape != first:
                    raise _unlike(split.where(row), image.shape, train.where(0), first)
                target[row] = image.transpose(2, 0, 1)

        # The error of the first wrong image is the one raised.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(0, count, 256)))
        return pixels

    return all_of(train), all_of(test)


def _pixels(split: Encoded, row: int, size: int | None, channels: int | None) -> np.ndarray:
    """Image ``row`` as (H, W, C), uint8."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(split.content(row)))
        ImageOps.exif_transpose(image, in_place=True)
    except UserError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        raise UserError(f"{split.where(row)} is not an image that can be read{why}") from error
    image = _convert(image, split.where(row), channels)
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _convert(image: "Image", where: str, channels: int | None) -> "Image":
    """The image as L or RGB."""
    mode = image.mode
    if mode.startswith(_DEEP):
        raise UserError(f"{where} has more than 8 bits a channel (mode {mode}); convert the files to 8 bits")
    if channels is not None:
        wanted = "L" if channels == 1 else "RGB"
    else:
        transparent = mode == "P" and "transparency" in image.info
        if mode not in _MODES or transparent:
            kind = f"mode {mode}, with transparency" if transparent else f"mode {mode}"
            raise UserError(
                f"{where} is neither plain gray nor RGB ({kind}); convert all images with --data.channels 3 or 1"
            )
        wanted = _MODES[mode]
    if mode == wanted:
        return image
    image.info.pop("transparency", None)  # of a palette: Pillow would warn of each image that it is dropped
    try:
        return image.convert(wanted)
    except ValueError as error:
        raise UserError(f"{where} cannot be converted from mode {mode} to {wanted}; convert the files") from error


def _unlike(where: str, shape: tuple[int, ...], first: str, expected: tuple[int, ...]) -> UserError:
    if shape[2] != expected[2]:
        return UserError(
            f"{where} has {shape[2]} channel(s) but {first} has {expected[2]}; "
            "make all images alike with --data.channels 3 or --data.channels 1"
        )
    return UserError(
        f"{where} has {shape[0]}x{shape[1]} pixels (height x width) but {first} has {expected[0]}x{expected[1]}; "
        f"make all images alike with --data.size S, for instance --data.size {min(expected[:2])}"
    )
