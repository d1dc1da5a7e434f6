"""Images in tables, in the convention of Hugging Face `datasets`: Parquet files, and what becomes of a table."""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensate.data.decoding import Encoded, Source
from condensate.errors import UserError

if TYPE_CHECKING:
    from pyarrow import Array, ChunkedArray, Schema, Table

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there is tested on


def parquet(folder: Path) -> Source | None:
    """The Parquet files of a folder, or None if it has none.

    Raises:
        UserError: If there is one split but not the other, or a file cannot be read.
    """
    found = _files(folder)
    if not found:
        return None
    test = next((found[split] for split in TEST_NAMES if split in found), None)
    if "train" not in found or test is None:
        raise UserError(
            f"{folder} has Parquet files of {', '.join(found)} only; "
            f"expected train.parquet and one of {', '.join(f'{split}.parquet' for split in TEST_NAMES)}"
        )
    splits = found["train"], test

    def digest() -> str:
        with ThreadPoolExecutor() as pool:
            return str([list(pool.map(_hash, files)) for files in splits])

    def stamp() -> str:
        return str([list(map(stamp_of, map(str, files))) for files in splits])

    def read() -> tuple[Encoded, Encoded, Sequence[str] | None]:
        train, test = (_read(files) for files in splits)
        return train[0], test[0], same_classes(train[1], test[1])

    return Source(digest, stamp, read)


def _files(folder: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split: ``train.parquet``, else ``train-*.parquet``, in the folder or its ``data``."""
    found: dict[str, list[Path]] = {}
    for base in (folder, folder / "data"):
        for split in ("train", *TEST_NAMES):
            whole = base / f"{split}.parquet"
            files = [whole] if whole.is_file() else sorted(base.glob(f"{split}-*.parquet"))
            if files:
                found.setdefault(split, files)
    return found


def _read(files: list[Path]) -> tuple[Encoded, list[str] | None]:
    """One split from its Parquet files; images are read only as they are asked for."""
    import pyarrow
    import pyarrow.parquet

    with _readable(files):
        names = pyarrow.parquet.read_schema(files[0]).names
        image, label = (_column(wanted, names, str(files[0])) for wanted in (IMAGE_COLUMNS, LABEL_COLUMNS))
        tables = [pyarrow.parquet.read_table(file, columns=[label]) for file in files]
        labels = pyarrow.concat_tables(tables)
    starts = list(accumulate((part.num_rows for part in tables), initial=0))[:-1]

    def where(row: int) -> str:
        file = bisect_right(starts, row) - 1
        return f"row {row - starts[file]} of {files[file]}"

    def after(start: int, row: int) -> str:
        return where(start + row)

    @cache
    def whole() -> Callable[[int], bytes]:
        with _readable(files):
            table = pyarrow.concat_tables([pyarrow.parquet.read_table(file, columns=[image]) for file in files])
        return _content(table[image], where)

    def walk() -> Iterator[bytes]:
        for file, start in zip(files, starts, strict=True):
            with _readable(files), pyarrow.parquet.ParquetFile(file, memory_map=True) as opened:
                for batch in opened.iter_batches(100, columns=[image]):
                    content = _content(batch[image], partial(after, start))
                    yield from map(content, range(len(batch)))
                    start += len(batch)

    numbers = _labels(labels, label, where)
    return Encoded(numbers, lambda row: whole()(row), where, walk), _class_names(labels.schema, label)


@contextmanager
def _readable(files: list[Path]) -> Iterator[None]:
    """Files that are not Parquet are a mistake of the user's."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise UserError(f"cannot read {', '.join(map(str, files))} as Parquet: {line(error)}") from error


def encoded(
    table: "Table", image: Sequence[str], label: Sequence[str], where: Callable[[int], str], linked: bool = False
) -> tuple[Encoded, list[str] | None]:
    """The rows of a table, and the class names in its metadata.

    Args:
        table: With a column of encoded images, as bytes or as structs of bytes and path, and one of integer labels.
        image: Names that the column of images may have.
        label: Names that the column of labels may have.
        where: What to call a row in a message.
        linked: Whether an image without bytes is read from its path.
    """
    image_name = _column(image, table.column_names, where(0))
    label_name = _column(label, table.column_names, where(0))
    content = _content(table[image_name], where, linked)
    return Encoded(_labels(table, label_name, where), content, where), _class_names(table.schema, label_name)


def _labels(table: "Table", name: str, where: Callable[[int], str]) -> np.ndarray:
    """The labels (N,) of a table."""
    from pyarrow import types

    labels = table[name]
    if not types.is_integer(labels.type) or labels.null_count:
        kind = f"{labels.type}" if not labels.null_count else f"{labels.type} with {labels.null_count} missing"
        raise UserError(f"column {name!r} must hold integers from 0 to K-1, got {kind} ({where(0)})")
    found: np.ndarray = labels.to_numpy()
    return found


def _content(
    images: "Array | ChunkedArray", where: Callable[[int], str], linked: bool = False
) -> Callable[[int], bytes]:
    """The file of row i of a column."""
    from pyarrow import compute, types

    paths = None
    if types.is_struct(images.type) and {"bytes", "path"} <= {field.name for field in images.type}:
        paths = compute.struct_field(images, "path") if linked else None
        images = compute.struct_field(images, "bytes")
    if not (types.is_binary(images.type) or types.is_large_binary(images.type)):
        raise UserError(
            f"images must be encoded files, binary or a struct of bytes and path, got {images.type} ({where(0)})"
        )

    def content(row: int) -> bytes:
        found: bytes | None = images[row].as_py()
        path = paths[row].as_py() if found is None and paths is not None else None
        if found is None and path is None:
            raise UserError(f"{where(row)} holds no image; every row must hold the bytes of one")
        try:
            return found if found is not None else Path(str(path)).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}, the image of {where(row)}: {error.strerror}") from error

    return content


def _class_names(schema: "Schema", label: str) -> list[str] | None:
    """The names of a ``ClassLabel`` in the metadata that `datasets` writes."""
    try:
        return list(json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"])
    except (LookupError, TypeError, ValueError):
        return None


def same_classes(train: list[str] | None, test: list[str] | None) -> list[str] | None:
    """The class names of both splits, of which one may have none."""
    if train is not None and test is not None and train != test:
        number = next((i for i, (a, b) in enumerate(zip(train, test)) if a != b), min(len(train), len(test)))
        raise UserError(
            f"training and test data must name the same classes in the same order; they differ from class {number} on "
            f"({len(train)} and {len(test)} names)"
        )
    return train if train is not None else test


def first_of(wanted: Sequence[str], there: Sequence[str], what: str, place: str, do: str) -> str:
    """The first name wanted that is there; the error where none is says what to do."""
    found = next((name for name in wanted if name in there), None)
    if found is None:
        raise UserError(f"{place} has no {what} {' or '.join(wanted)}; its {what}s are {', '.join(there)}: {do}")
    return found


def _column(wanted: Sequence[str], there: Sequence[str], place: str) -> str:
    return first_of(wanted, there, "column", place, f"if one of them is it, rename it {wanted[0]}")


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def stamp_of(file: str) -> str:
    """Path, size and time of a file: what changes when it does, without reading it."""
    try:
        found = os.stat(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    return f"{os.path.abspath(file)} {found.st_size} {found.st_mtime_ns}"


def line(error: Exception) -> str:
    """The first line of its message."""
    return (str(error).splitlines() or [""])[0]
