"""Images in folders, one folder a class."""

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from condensate.data.classes import divide
from condensate.data.decoding import Encoded, Source
from condensate.data.tables import TEST_NAMES, stamp_of
from condensate.errors import UserError

Items = list[tuple[str, int]]  # files and their labels


def find(folder: Path) -> Source | None:
    """Images under ``train/<class>`` and ``test/<class>``, or under ``<class>``; None if there is neither.

    Classes are the names of the folders in sorted order. Every file below a class folder is an image of the class,
    however deep and through links, but for hidden ones and those that Windows puts there. A folder without splits is
    divided: of each class the same fifth is always held for testing, and a warning says so.

    Raises:
        UserError: If a split is missing, or the splits differ in classes, or a class has no images, or classes seem to
            lie a folder below, or a link leads nowhere or to a folder that is in the class already.
    """
    test = next((folder / split for split in TEST_NAMES if (folder / split).is_dir()), None)
    train = folder / "train"
    if train.is_dir() != (test is not None):
        there, missing = (train, " or ".join(TEST_NAMES)) if test is None else (test, "train")
        raise UserError(
            f"there is a folder {there} but none called {missing} beside it; expected both or neither: add the missing "
            f"one, or have a fifth of {there} held for testing by naming it alone: --data.path {there}"
        )
    if test is not None:
        others = [split for split in TEST_NAMES if (folder / split).is_dir() and split != test.name]
        if others:
            warnings.warn(
                f"{folder}: networks are tested on {test.name}; {', '.join(others)} is not read", stacklevel=4
            )
        classes, training = _items(train)
        tested, testing = _items(test)
        if classes != tested:
            raise UserError(
                f"{train} and {test} must hold the same classes; only in one of them: "
                f"{', '.join(sorted(set(classes) ^ set(tested)))}"
            )
        _check_level(train, classes, split=True)
    else:
        classes, every = _items(folder)
        if not every:
            return None
        _check_level(folder, classes)
        warnings.warn(
            f"{folder} has no folders train and test: the same fifth of each class is always held for testing",
            stacklevel=4,
        )
        kept, taken = divide(torch.tensor([label for _, label in every]), 0.2, "test", classes)
        training, testing = ([every[row] for row in index.tolist()] for index in (kept, taken))

    def digest() -> str:
        whole = hashlib.sha256(repr(classes).encode())
        for items in (training, testing):
            with ThreadPoolExecutor() as pool:
                for (_, label), content in zip(items, pool.map(_hash, items)):
                    whole.update(label.to_bytes(8, "big") + content)
            whole.update(b"/")
        return whole.hexdigest()

    def stamp() -> str:
        whole = hashlib.sha256(repr(classes).encode())
        for items in (training, testing):
            for file, label in items:
                whole.update(f"{label} {stamp_of(file)}\n".encode())
            whole.update(b"/")
        return whole.hexdigest()

    return Source(digest, stamp, lambda: (_encoded(training), _encoded(testing), classes))


def _items(folder: Path) -> tuple[list[str], Items]:
    """Class names, and the images of all classes in the order of their paths."""
    children = [child for child in folder.iterdir() if not _passed_over(child.name)]
    for child in children:
        _check_link(str(child))
    classes = sorted(child.name for child in children if child.is_dir())
    items: Items = []
    for label, name in enumerate(classes):
        files = list(_below(str(folder / name)))
        if not files:
            raise UserError(f"class folder {folder / name} holds no images; add some or remove the folder")
        items += [(file, label) for file in sorted(files, key=lambda file: file.split(os.sep))]
    return classes, items


def _passed_over(name: str) -> bool:
    """Whether a file or folder is hidden, or one that Windows puts among pictures by itself."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _check_level(folder: Path, classes: list[str], split: bool = False) -> None:
    """Where class folders hold nothing but folders, the one named may be a level too high: of one class, it is.

    A ``split`` has another beside it, so that what is below it cannot be named in its place.
    """
    inside = [[child for child in (folder / name).iterdir() if not _passed_over(child.name)] for name in classes]
    nested = all(child.is_dir() for children in inside for child in children)
    below = ", ".join(sorted(child.name for child in inside[0])[:3]) if nested else ""
    if len(classes) == 1 and nested:
        do = f"move them to {folder}, and those for testing likewise" if split else f"--data.path {folder / classes[0]}"
        raise UserError(
            f"{folder} has one class folder, {classes[0]}, which holds folders alone ({below}); if these are the "
            f"classes: {do}"
        )
    if len(classes) == 1:
        warnings.warn(f"{folder} has one class folder, {classes[0]}: every network is right on it", stacklevel=5)
    elif nested:
        warnings.warn(
            f"the classes are the folders in {folder}: {', '.join(classes[:3])}{', ...' if classes[3:] else ''}; those "
            f"below them ({below}) are not",
            stacklevel=5,
        )


def _below(folder: str) -> Iterator[str]:
    """Files below a folder, hidden ones and folders apart, through links; plain strings, for there may be millions."""
    been: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in been:
            raise UserError(f"{place} is a link to {real}, whose images are in {folder} already; remove one of the two")
        been.add(real)
        folders[:] = [name for name in folders if not _passed_over(name)]
        for file in (os.path.join(place, name) for name in files if not _passed_over(name)):
            _check_link(file)
            if os.path.isfile(file):
                yield file


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _check_link(path: str) -> None:
    """Refuse a link to nothing: what it is to stand for would be missed without a word."""
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(
            f"{path} is a link to {os.readlink(path)}, which is not there; put that back or remove the link"
        )


def _hash(item: tuple[Path, int]) -> bytes:
    try:
        return hashlib.sha256(Path(item[0]).read_bytes()).digest()
    except OSError as error:
        raise UserError(f"cannot read {item[0]}: {error.strerror}") from error


def _encoded(items: Items) -> Encoded:
    labels = np.array([label for _, label in items])
    return Encoded(labels, lambda row: Path(items[row][0]).read_bytes(), lambda row: items[row][0])
