"""Where data come from: by a name that is known here, or a folder."""

from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path

import numpy as np
import torch

from condensate.data import folders, hub, tables
from condensate.data.classes import divide
from condensate.data.decoding import Encoded, Source
from condensate.errors import UserError, unknown


@dataclass(frozen=True)
class Known:
    """A data set that has a name here.

    Attributes:
        shape: Of one image, (C, H, W).
        classes: Number of classes.
        counts: Images to train and to score on, roughly where they come from the user's own copy.
        hub: Name on the Hugging Face hub; None for what comes with a package or is the user's own copy.
        config: Which of several variants on the hub.
        image: Column of the images.
        label: Column of the labels.
        train: Name of the training split.
        test: Name of the split that is tested on.
    """

    shape: tuple[int, int, int]
    classes: int
    counts: tuple[int, int]
    hub: str | None
    config: str | None = None
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"


# Ten classes each, by their numbers in ImageNet-1k (sorted WordNet ids). Cazenavette et al., CVPR 2022.
IMAGENET_SUBSETS = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
}

KNOWN = {
    "digits": Known((1, 8, 8), 10, (1297, 500), None),
    "mnist": Known((1, 28, 28), 10, (60_000, 10_000), "ylecun/mnist"),
    "fashion-mnist": Known((1, 28, 28), 10, (60_000, 10_000), "zalando-datasets/fashion_mnist"),
    "svhn": Known((3, 32, 32), 10, (73_257, 26_032), "ufldl-stanford/svhn", "cropped_digits"),
    "cifar10": Known((3, 32, 32), 10, (50_000, 10_000), "uoft-cs/cifar10", image="img"),
    "cifar100": Known((3, 32, 32), 100, (50_000, 10_000), "uoft-cs/cifar100", image="img", label="fine_label"),
    "tinyimagenet": Known((3, 64, 64), 200, (100_000, 10_000), "zh-plus/tiny-imagenet", test="valid"),
    "tinyimagenet-20": Known((3, 64, 64), 20, (10_000, 1_000), None),
} | {name: Known((3, 128, 128), 10, (13_000, 500), None) for name in IMAGENET_SUBSETS}


def named(name: str) -> Source:
    """A data set by its name here or on the hub.

    Raises:
        UserError: If there is none, or it cannot be had.
    """
    if name in IMAGENET_SUBSETS:
        numbers = ", ".join(map(str, IMAGENET_SUBSETS[name]))
        raise UserError(
            f"{name} comes from your own copy of ImageNet: --data.path DIR with train/<class>/* and val/<class>/* "
            f"of its classes; in the order of ImageNet's folders, counted from 0, these are {numbers}"
        )
    if name == "tinyimagenet-20":
        raise UserError(
            "tinyimagenet-20 comes from your own copy of Tiny-ImageNet: --data.path DIR with train/<class>/* and "
            "val/<class>/*, or train.parquet and test.parquet, of every tenth class in the order of its folders"
        )
    known = KNOWN.get(name)
    if known is not None and known.hub is not None:
        columns = (known.image,), (known.label,)
        return hub.find(known.hub, known.config, *columns, (known.train,), (known.test,))
    if known is not None:
        return Source(lambda: name, lambda: name, _digits)
    if "/" in name:
        return hub.find(name)
    if name == "folder":
        raise UserError("the data are a folder of your own: say which with --data.path DIR")
    raise unknown("data set", name, KNOWN, "(or name a folder of your own with --data.path DIR)")


def at(folder: Path) -> Source:
    """A data set in a folder: Parquet files, else images in class folders.

    Raises:
        UserError: If there is neither.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"--data.path must name a folder of Parquet files or of class folders; {folder} {what}")
    inner = sorted(file.parent.name for file in folder.glob("*/train.parquet"))
    source = tables.parquet(folder)
    if source is None and not inner:
        source = folders.find(folder)
    if source is None:
        there = f", but there are data sets in its folders {', '.join(inner)}" if inner else ""
        if not inner and any((guess_type(file.name)[0] or "").startswith("image/") for file in folder.iterdir()):
            there = (
                f" by class, but images lie in it itself: is it a class, and {folder.resolve().parent} the data set?"
            )
        raise UserError(
            f"no images found in {folder}{there}; --data.path expects a folder with train.parquet and test.parquet, "
            "or with train/<class>/* and test/<class>/*, or with <class>/*"
        )
    return source


def _digits() -> tuple[Encoded, Encoded, list[str]]:
    """The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn, values 0 to 16 spread over 0 to 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in bunch.target_names]

    def split(index: torch.Tensor) -> Encoded:
        rows = index.numpy()
        header = b"P5 8 8 255\n"  # of a PGM file
        return Encoded(bunch.target[rows], lambda i: header + pixels[rows[i]].tobytes(), lambda i: f"digit {rows[i]}")

    train, test = divide(torch.from_numpy(bunch.target), 500 / 1797, "test", names)
    return split(train), split(test), names
