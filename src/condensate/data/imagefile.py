"""An encoded image and its pixels; run as a script, a process that decodes images of Arrow files for another.

Nothing of this package is imported, so that such a process starts in a fraction of a second and holds no PyTorch.
"""

import io
import json
import os
import signal
import struct
import sys
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from pyarrow import Buffer, Table

REQUEST = struct.Struct("<QQ")  # number of the file, how many rows follow as int64
REPLY = struct.Struct("<qQ")  # -1 and how many bytes of pixels follow, or a row and how many of what is wrong with it
FINE = -1

_MODES = {"1": "L", "L": "L", "RGB": "RGB", "P": "RGB"}  # what is read as it is, and as what
_DEEP = ("I", "F")  # 16 and 32 bits a pixel: "I;16" and so on
_TURNED = range(5, 9)  # EXIF orientations under which width and height change places


class ImageError(ValueError):
    """What is wrong with an image, to be said after its name."""


class Header(NamedTuple):
    """What an image says of itself before it is decoded; height and width as it is to be seen."""

    height: int
    width: int
    mode: str
    transparent: bool


def header(content: "bytes | Buffer") -> Header:
    """The header of an encoded image, which is not decoded but where its orientation stands behind its pixels."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content))
        width, height = image.size
        turned = width != height and image.getexif().get(0x0112) in _TURNED
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise _unreadable(error) from error
    height, width = (width, height) if turned else (height, width)
    return Header(height, width, image.mode, image.mode == "P" and "transparency" in image.info)


def pixels(content: "bytes | Buffer", size: int | None, channels: int | None) -> np.ndarray:
    """An encoded image as (H, W, C), uint8, turned as it says itself.

    Args:
        content: Of the file.
        size: Side to which it is resized (shorter side) and cropped; None leaves it as it is.
        channels: 1 or 3; None takes those it has.

    Raises:
        ImageError: It cannot be read or converted.
    """
    from PIL import Image, ImageOps

    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        raise _unreadable(error) from error
    image = _convert(image, channels)
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    found = np.asarray(image)
    return found[..., None] if found.ndim == 2 else found


def wanted_mode(mode: str, transparent: bool, channels: int | None) -> str:
    """L or RGB, as which an image of this mode is read.

    Raises:
        ImageError: It has too many bits, or ``channels`` must be named.
    """
    if mode.startswith(_DEEP):
        raise ImageError(f"has more than 8 bits a channel (mode {mode}); convert the files to 8 bits")
    if channels is not None:
        return "L" if channels == 1 else "RGB"
    if mode not in _MODES or transparent:
        kind = f"mode {mode}, with transparency" if transparent else f"mode {mode}"
        raise ImageError(f"is neither plain gray nor RGB ({kind}); convert all images with --data.channels 3 or 1")
    return _MODES[mode]


def _convert(image: "Image", channels: int | None) -> "Image":
    mode = image.mode
    wanted = wanted_mode(mode, mode == "P" and "transparency" in image.info, channels)
    if mode == wanted:
        return image
    image.info.pop("transparency", None)  # of a palette: Pillow would warn of each image that it is dropped
    try:
        return image.convert(wanted)
    except ValueError as error:
        raise ImageError(f"cannot be converted from mode {mode} to {wanted}; convert the files") from error


def _unreadable(error: Exception) -> ImageError:
    from PIL import UnidentifiedImageError

    why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
    return ImageError(f"is not an image that can be read{why}; repair or remove it")


class Rows:
    """The image files of an Arrow table, which stay where the table is: mapped from disk.

    Args:
        table: With a column ``image`` of structs of bytes and path.
    """

    def __init__(self, table: "Table") -> None:
        chunks = table["image"].chunks
        self._starts = list(accumulate(map(len, chunks), initial=0))[:-1]
        self._bytes = [chunk.field("bytes") for chunk in chunks]
        self._names = [chunk.field("path") for chunk in chunks]

    def content(self, row: int) -> "Buffer":
        """The file of an image."""
        chunk = bisect_right(self._starts, row) - 1
        return self._bytes[chunk][row - self._starts[chunk]].as_buffer()

    def name(self, row: int) -> str:
        """What to call an image in a message."""
        chunk = bisect_right(self._starts, row) - 1
        return str(self._names[chunk][row - self._starts[chunk]].as_py())

    def fill(self, target: np.ndarray, rows: Sequence[int], size: int | None, channels: int | None) -> None:
        """Decode the images of ``rows`` (k,) to ``target`` (k, C, H, W), uint8.

        Raises:
            ImageError: As ``pixels``, or an image decodes to another shape; its row is the second argument.
        """
        for place, row in enumerate(rows):
            try:
                found = pixels(self.content(row), size, channels).transpose(2, 0, 1)
                if found.shape != target.shape[1:]:
                    raise ImageError(f"decodes to {found.shape} but its header promised {target.shape[1:]}")
            except ImageError as error:
                raise ImageError(str(error), row) from error
            target[place] = found


def mapped(path: str) -> Rows:
    """The image files of an Arrow file, memory-mapped."""
    import pyarrow

    return Rows(pyarrow.ipc.open_stream(pyarrow.memory_map(path)).read_all())


def main() -> None:
    """Answer requests on standard input until it ends; argument: JSON of files, shape (C, H, W), size and channels."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when its standard input does
    asked, answer = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed does not get between the pixels
    told = json.loads(sys.argv[1])
    files = [mapped(path) for path in told["files"]]
    while len(request := asked.read(REQUEST.size)) == REQUEST.size:
        number, count = REQUEST.unpack(request)
        rows = np.frombuffer(asked.read(8 * count), np.int64)
        if len(rows) < count:
            break
        target = np.empty((count, *told["shape"]), np.uint8)
        try:
            files[number].fill(target, rows.tolist(), told["size"], told["channels"])
        except ImageError as error:
            message, row = error.args
            said = message.encode()
            answer.write(REPLY.pack(row, len(said)) + said)
        else:
            answer.write(REPLY.pack(FINE, target.nbytes))
            answer.write(target.data)
        answer.flush()


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):  # who asked has gone
        os._exit(1)
