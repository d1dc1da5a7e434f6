"""Encoded images in Arrow files of the cache, written once and memory-mapped, through Hugging Face `datasets`."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condensate.data import cache
from condensate.data.contents import check_labels
from condensate.data.decoding import Encoded, Source, unlike
from condensate.data.disk import OnDisk, Reader
from condensate.data.imagefile import Header, ImageError, header, mapped, wanted_mode
from condensate.data.pool import Pool
from condensate.errors import UserError

FORMAT = 1  # to be raised when what is written changes
BATCH, BATCH_BYTES = 1024, 1 << 22  # most images, and about most bytes, written at once: few batches are soon mapped
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Stored:
    """What a data set holds before it is normalised, its images on disk.

    Attributes:
        train_images: Encoded.
        train_labels: (N,), int64.
        test_images: Encoded.
        test_labels: (M,), int64.
        classes: Names.
        fingerprint: SHA-256 over encoded images, labels, class names, and how images are made of one shape.
    """

    train_images: OnDisk
    train_labels: Tensor
    test_images: OnDisk
    test_labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str


def stored(source: Source, size: int | None, channels: int | None, workers: int | None) -> Stored:
    """The images of a source, written to the cache if they are not there yet; none is decoded.

    Args:
        source: Where they come from.
        size: As for ``load``.
        channels: Likewise.
        workers: Processes that decode; None for one core less than there are, 1 to 4.

    Raises:
        UserError: `datasets` is not installed, an image cannot be read or is not like the first, or the cache cannot
            be written.
    """
    datasets = _datasets()
    name = hashlib.sha256(json.dumps([FORMAT, source.stamp()]).encode()).hexdigest()
    folder = cache.folder() / f"arrow-{name}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder.parent):
            about = _kept(folder) or _build(source, folder)
    except OSError as error:
        raise UserError(
            f"images cannot be kept in {folder.parent} ({error.strerror or error}); name a folder with room for all "
            "of them in $CONDENSATE_CACHE, or hold them in memory: --data.hold memory"
        ) from error
    files = [folder / f"{split}.arrow" for split in SPLITS]
    shape = _one_shape(files, about, size, channels)
    reader = Reader(Pool(files, shape, size, channels, _default_workers() if workers is None else workers))
    fingerprint = hashlib.sha256(json.dumps([about["fingerprint"], size, channels]).encode()).hexdigest()

    def split(number: int) -> tuple[OnDisk, Tensor]:
        column = datasets.Dataset.from_file(str(files[number])).data.column("label")
        labels = torch.from_numpy(np.concatenate([chunk.to_numpy() for chunk in column.chunks]))
        return OnDisk(reader, number, torch.arange(len(labels))), labels

    return Stored(*split(0), *split(1), tuple(about["classes"]), fingerprint)


def _datasets() -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "images held on disk need the package datasets; install it with pip install 'datasets>=3', or hold "
            "them in memory: --data.hold memory"
        ) from error
    found: ModuleType = datasets
    return found


def _kept(folder: Path) -> dict[str, Any] | None:
    """What was written to a folder, or None if it is not whole."""
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        sizes = {file: (folder / file).stat().st_size for file in about["bytes"]}
        return about if sizes == about["bytes"] else None
    except (OSError, LookupError, TypeError, ValueError):
        return None


def _build(source: Source, folder: Path) -> dict[str, Any]:
    """Write a source's images to a folder, which is there only once it is whole."""
    import pyarrow

    part = folder.with_name(f"{folder.name}.part")
    for left in (part, folder):  # by a process that was killed; damaged
        if left.exists():
            rmtree(left)
    part.mkdir()
    try:
        train, test, names = source.read()
        *labels, classes = check_labels(train.labels, test.labels, names)
        about: dict[str, Any] = {"classes": classes, "kinds": {}, "bytes": {}}
        whole = hashlib.sha256(json.dumps(classes).encode())
        for name, split, numbers in zip(SPLITS, (train, test), labels, strict=True):
            file = part / f"{name}.arrow"
            about["kinds"][name], digest = _write(file, split, numbers.numpy(), classes)
            about["bytes"][file.name] = file.stat().st_size
            whole.update(digest)
        about["fingerprint"] = whole.hexdigest()
        (part / "about.json").write_text(json.dumps(about))
        os.replace(part, folder)
    finally:
        if part.exists():
            rmtree(part)
        pyarrow.default_memory_pool().release_unused()
    return about


def _write(file: Path, split: Encoded, labels: np.ndarray, classes: tuple[str, ...]) -> tuple[list[Any], bytes]:
    """Write one split, some images at a time; each kind of image with its first row, and a SHA-256 over all."""
    import pyarrow
    from datasets import ClassLabel, Features, Image
    from datasets.arrow_writer import ArrowWriter

    kinds: dict[Header, int] = {}
    whole = hashlib.sha256(labels.data)
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=list(classes))})
    row = 0
    with ArrowWriter(features=features, path=str(file)) as writer:
        for contents in _batches(split.contents()):
            images, first = [], row
            for row, content in enumerate(contents, first):
                try:
                    kinds.setdefault(header(content), row)
                except ImageError as error:
                    raise UserError(f"{split.where(row)} {error}") from error
                whole.update(hashlib.sha256(content).digest())
                images.append({"bytes": content, "path": split.where(row)})
            row += 1
            column = pyarrow.array(images, features["image"].pa_type)
            table = pyarrow.table({"image": column, "label": pyarrow.array(labels[first:row])})
            writer.write_table(table, writer_batch_size=len(table))
        writer.finalize()
    return [[*kind, row] for kind, row in kinds.items()], whole.digest()


def _batches(contents: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Files in lists of a bounded size."""
    batch, size = list[bytes](), 0
    for content in contents:
        batch.append(content)
        size += len(content)
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _one_shape(
    files: list[Path], about: dict[str, Any], size: int | None, channels: int | None
) -> tuple[int, int, int]:
    """The shape (C, H, W) that all images decode to, from their headers.

    Raises:
        UserError: An image is not like the first; it is named.
    """
    first: tuple[str, tuple[int, int, int]] | None = None
    for file, split in zip(files, SPLITS, strict=True):
        rows = mapped(str(file))
        for height, width, mode, transparent, row in about["kinds"][split]:
            try:
                wanted = wanted_mode(mode, transparent, channels)
            except ImageError as error:
                raise UserError(f"{rows.name(row)} {error}") from error
            shape = (size or height, size or width, 1 if wanted == "L" else 3)
            first = first or (rows.name(row), shape)
            if shape != first[1]:
                raise unlike(rows.name(row), shape, *first)
    assert first is not None
    height, width, depth = first[1]
    return depth, height, width


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores - 1, 1), 4)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process writes images to a folder, and keep others waiting; ends with this process."""
    if os.name != "posix":
        yield  # two processes may do the same work
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
