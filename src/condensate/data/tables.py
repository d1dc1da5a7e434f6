"""Images in tables: Parquet files in the convention of Hugging Face `datasets`, and data sets of its hub."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from condensate.data.decoding import Encoded, Source
from condensate.errors import UserError

if TYPE_CHECKING:
    from pyarrow import Schema, Table

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
    with ThreadPoolExecutor() as pool:
        digest = str([list(pool.map(_hash, files)) for files in splits])

    def read() -> tuple[Encoded, Encoded, Sequence[str] | None]:
        train, test = (_read(files) for files in splits)
        return train[0], test[0], _same_classes(train[1], test[1])

    return Source(digest, read)


def hub(
    name: str,
    config: str | None = None,
    image: Sequence[str] = IMAGE_COLUMNS,
    label: Sequence[str] = LABEL_COLUMNS,
    train: Sequence[str] = ("train",),
    test: Sequence[str] = TEST_NAMES,
) -> Source:
    """A data set of the Hugging Face hub, downloaded if its own cache does not hold it yet.

    Args:
        name: On the hub, or a folder that ``datasets.load_dataset`` reads.
        config: Which of several variants.
        image: Columns of images; the first that is there is taken, as with the next three.
        label: Columns of labels.
        train: Splits to train on.
        test: Splits to test on.

    Raises:
        UserError: If `datasets` is not installed, the data cannot be had, or a column or split is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"reading {name!r} from the Hugging Face hub needs the package datasets; install it with "
            "pip install 'condensate[hub]', or pass a local copy with --data.path DIR"
        ) from error
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:  # no name, no network, no space, no permission: each has its own type
        raise UserError(
            f"cannot load {name!r} from the Hugging Face hub ({type(error).__name__}: {_line(error)}); "
            "check the name and the connection, or pass a local copy with --data.path DIR"
        ) from error

    def split(wanted: Sequence[str]) -> tuple[Encoded, list[str] | None]:
        found = _first(wanted, list(loaded), "split", repr(name))
        table = loaded[found].with_format("arrow")[:]
        return _encoded(table, image, label, lambda row: f"row {row} of {name} {found}", linked=True)

    (training, classes), (testing, others) = split(train), split(test)
    names = _same_classes(classes, others)
    whole = hashlib.sha256(json.dumps(names).encode())
    for part in (training, testing):
        whole.update(part.labels.tobytes())
        for row in range(len(part.labels)):
            whole.update(hashlib.sha256(part.content(row)).digest())
    return Source(whole.hexdigest(), lambda: (training, testing, names))


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
    """One split from its Parquet files."""
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(files[0]).names
        columns = [_first(wanted, names, "column", str(files[0])) for wanted in (IMAGE_COLUMNS, LABEL_COLUMNS)]
        tables = [pyarrow.parquet.read_table(file, columns=columns) for file in files]
        table = pyarrow.concat_tables(tables)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"cannot read {', '.join(map(str, files))} as Parquet: {_line(error)}") from error
    starts = list(accumulate((part.num_rows for part in tables), initial=0))[:-1]

    def where(row: int) -> str:
        file = bisect_right(starts, row) - 1
        return f"row {row - starts[file]} of {files[file]}"

    return _encoded(table, IMAGE_COLUMNS, LABEL_COLUMNS, where)


def _encoded(
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
    from pyarrow import compute, types

    images = table[_first(image, table.column_names, "column", where(0))]
    label_name = _first(label, table.column_names, "column", where(0))
    labels = table[label_name]
    if not types.is_integer(labels.type) or labels.null_count:
        kind = f"{labels.type}" if not labels.null_count else f"{labels.type} with {labels.null_count} missing"
        raise UserError(f"column {label_name!r} must hold integers from 0 to K-1, got {kind} ({where(0)})")
    paths: list[str | None] = [None] * len(images)
    if types.is_struct(images.type) and {"bytes", "path"} <= {field.name for field in images.type}:
        paths = compute.struct_field(images, "path").to_pylist() if linked else paths
        images = compute.struct_field(images, "bytes")
    if not (types.is_binary(images.type) or types.is_large_binary(images.type)):
        raise UserError(
            f"images must be encoded files, binary or a struct of bytes and path, got {images.type} ({where(0)})"
        )
    data: list[bytes | None] = images.to_pylist()

    def content(row: int) -> bytes:
        found, path = data[row], paths[row]
        if found is None and path is None:
            raise UserError(f"{where(row)} holds no image; every row must hold the bytes of one")
        try:
            return found if found is not None else Path(str(path)).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}, the image of {where(row)}: {error.strerror}") from error

    return Encoded(labels.to_numpy(), content, where), _class_names(table.schema, label_name)


def _class_names(schema: "Schema", label: str) -> list[str] | None:
    """The names of a ``ClassLabel`` in the metadata that `datasets` writes."""
    try:
        return list(json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"])
    except (LookupError, TypeError, ValueError):
        return None


def _same_classes(train: list[str] | None, test: list[str] | None) -> list[str] | None:
    if train is not None and test is not None and train != test:
        number = next((i for i, (a, b) in enumerate(zip(train, test)) if a != b), min(len(train), len(test)))
        raise UserError(
            f"training and test data must name the same classes in the same order; they differ from class {number} on "
            f"({len(train)} and {len(test)} names)"
        )
    return train if train is not None else test


def _first(wanted: Sequence[str], there: Sequence[str], what: str, place: str) -> str:
    found = next((name for name in wanted if name in there), None)
    if found is None:
        raise UserError(f"{place} has no {what} {' or '.join(wanted)}; its {what}s are {', '.join(there)}")
    return found


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _line(error: Exception) -> str:
    """The first line of its message."""
    return (str(error).splitlines() or [""])[0]
