"""Data sets of the Hugging Face hub."""

import hashlib
import json
from collections.abc import Sequence

from condensate.data.decoding import Encoded, Source
from condensate.data.tables import IMAGE_COLUMNS, LABEL_COLUMNS, TEST_NAMES, encoded, first_of, line, same_classes
from condensate.errors import UserError


def find(
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
            "pip install 'datasets>=3', or pass a local copy with --data.path DIR"
        ) from error
    try:
        loaded = datasets.load_dataset(name, config)
    except Exception as error:  # no name, no network, no space, no permission: each has its own type
        raise UserError(
            f"cannot load {name!r} from the Hugging Face hub ({type(error).__name__}: {line(error)}); "
            "check the name and the connection, or pass a local copy with --data.path DIR"
        ) from error

    def split(wanted: Sequence[str]) -> tuple[Encoded, list[str] | None, str]:
        do = "make one, or save folders of images by class, of which a fifth is held out for testing: --data.path DIR"
        found = first_of(wanted, list(loaded), "split", repr(name), do)
        table = loaded[found].with_format("arrow")[:]  # mapped, as the cache of `datasets` holds it
        chosen, classes = encoded(table, image, label, lambda row: f"row {row} of {name} {found}", linked=True)
        return chosen, classes, str(loaded[found]._fingerprint)

    (training, classes, first), (testing, others, second) = split(train), split(test)
    names = same_classes(classes, others)

    def digest() -> str:
        whole = hashlib.sha256(json.dumps(names).encode())
        for part in (training, testing):
            whole.update(part.labels.tobytes())
            for content in part.contents():
                whole.update(hashlib.sha256(content).digest())
        return whole.hexdigest()

    return Source(digest, lambda: json.dumps([name, config, first, second]), lambda: (training, testing, names))
