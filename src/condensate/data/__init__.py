"""Image data in: images of two splits, class names and a normalisation, from arrays, files, folders or the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from condensate.data import cache, sources
from condensate.data.archive import Stored, stored
from condensate.data.contents import Contents, as_images, check_labels
from condensate.data.decoding import decode
from condensate.data.imagedata import ImageData
from condensate.data.raw import RawImages, measure
from condensate.data.sources import KNOWN, Known
from condensate.data.splits import Split
from condensate.errors import UserError
from condensate.whitening import fit

__all__ = [
    "KNOWN",
    "ImageData",
    "Known",
    "RawImages",
    "Split",
    "check_hold",
    "check_zca",
    "from_arrays",
    "load",
    "look",
    "measure",
    "read",
]


def load(
    name: str = "digits",
    *,
    path: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    validation: float = 0.0,
    zca: bool = False,
    size: int | None = None,
    channels: int | None = None,
    hold: Literal["memory", "disk"] = "memory",
    workers: int | None = None,
) -> ImageData:
    """A data set, decoded once: later loads of the same files read the decoded images from a cache.

    What is larger than memory is held on disk: copied to the cache as it is, encoded, and decoded by other processes
    as it is read. The same pixels come either way.

    The cache lies in ``$CONDENSATE_CACHE``, else in ``condensate`` under the XDG cache folder; it can be deleted at
    any time. Images are turned as their EXIF orientation says, and palettes become RGB. Images of other kinds, or
    of more than one kind or size, need ``channels`` or ``size``. Without ``path``, digits come with scikit-learn
    (1,297 to train, 500 to test) and everything else comes from the Hugging Face hub.

    Args:
        name: digits, mnist, fashion-mnist, svhn, cifar10, cifar100, tinyimagenet, or owner/name on the Hugging Face
            hub. With ``path``, any name: it is only shown. The subsets of ImageNet (imagenette, imagewoof, imagemeow,
            imagesquawk, imagefruit, imageyellow) and of Tiny-ImageNet (tinyimagenet-20) need ``path``.
        path: A folder with train.parquet and test.parquet (columns image and label), or with class folders
            train/<class>/* and test/<class>/*, or <class>/* of which a fixed fifth is held for testing.
        mean: Subtracted, one value a channel on the scale 0 to 1; measured when absent.
        std: Divided by, one value a channel on the scale 0 to 1; measured when absent.
        validation: Part of the training images held out of training, 0 to below 1; the same ones whatever the seed.
        zca: Whiten pixels in place of normalising them, by the mean and covariance of the training images without the
            validation images; at most 3,072 values an image. Mean and std are then not taken.
        size: Side to which images are resized (shorter side, bicubic with antialiasing) and cropped at the centre.
        channels: 1 or 3, to which images are converted; transparency is dropped.
        hold: Where images are: memory, decoded; or disk, encoded and memory-mapped, needs the extra hub.
        workers: Processes that decode what is held on disk; 0 decodes in this one. Absent: one core less than there
            are, 1 to 4.

    Raises:
        UserError: For what the user can mend in the files or the arguments.
    """
    check_zca(mean, std, zca)
    contents = read(name, path=path, size=size, channels=channels, hold=hold, workers=workers)
    statistics = {} if hold == "memory" else {"statistics": cache.statistics}
    whiten = cache.whitening if zca else None
    return ImageData.of(name, contents, mean=mean, std=std, validation=validation, whiten=whiten, **statistics)


def read(
    name: str,
    *,
    path: str | None,
    size: int | None,
    channels: int | None,
    hold: Literal["memory", "disk"],
    workers: int | None,
) -> Contents | Stored:
    """What ``load`` loads, before it is divided and normalised; the arguments are those of ``load``."""
    check_hold(hold, workers)
    if size is not None and size < 1:
        raise UserError(f"--data.size must be at least 1, got {size}")
    if channels not in (None, 1, 3):
        raise UserError(f"--data.channels must be 1 or 3, got {channels}")
    source = sources.at(Path(path).expanduser()) if path is not None else sources.named(name)

    if hold == "disk":
        return stored(source, size, channels, workers)

    def make() -> Contents:
        train, test, classes = source.read()
        train_labels, test_labels, classes = check_labels(train.labels, test.labels, classes)
        train_images, test_images = decode(train, test, size, channels)
        return Contents(train_images, train_labels, test_images, test_labels, classes)

    return cache.cached([source.digest(), size, channels], make)


def look(
    name: str, *, mean: Sequence[float] | None, std: Sequence[float] | None, validation: float, zca: bool, **where: Any
) -> ImageData:
    """What ``load`` gives, but of images held on disk nothing is decoded: what would be measured is 0 and 1."""
    if where["hold"] == "memory" or zca or (mean is not None and std is not None):
        return load(name, mean=mean, std=std, validation=validation, zca=zca, **where)
    contents = read(name, **where)
    channels = contents.train_images.shape[0]
    return ImageData.of(name, contents, mean=[0.0] * channels, std=[1.0] * channels, validation=validation)


def from_arrays(
    train_images: object,
    train_labels: object,
    test_images: object,
    test_labels: object,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    validation: float = 0.0,
    zca: bool = False,
    name: str = "arrays",
) -> ImageData:
    """A data set from what is in memory. The arrays are copied.

    Args:
        train_images: PyTorch tensor or NumPy array, (N, C, H, W), (N, H, W, C) with C at most 4, or (N, H, W); uint8,
            or floating point from 0 to 1, which is rounded to 255 steps.
        train_labels: (N,) integers from 0, every class present.
        test_images: As ``train_images``, of the same shape but for N.
        test_labels: (N,) integers, classes of ``train_labels``.
        classes: Names in the order of the labels; "0", "1" and so on when absent.
        mean: As for ``load``.
        std: As for ``load``.
        validation: As for ``load``.
        zca: As for ``load``.
        name: Shown to the user.

    Raises:
        UserError: If an array is not of this form or the arrays do not fit each other.
    """
    check_zca(mean, std, zca)
    labels = check_labels(train_labels, test_labels, classes)
    contents = Contents(as_images(train_images, "train"), labels[0], as_images(test_images, "test"), *labels[1:])
    whiten = (lambda images, _: fit(images.chunks())) if zca else None
    return ImageData.of(name, contents, mean=mean, std=std, validation=validation, whiten=whiten)


def check_zca(mean: Sequence[float] | None, std: Sequence[float] | None, zca: bool) -> None:
    """Refuse a normalisation where pixels are whitened."""
    given = [f"--data.{key}" for key, values in (("mean", mean), ("std", std)) if values is not None]
    if zca and given:
        raise UserError(
            f"ZCA takes the place of normalisation: drop {' and '.join(given)} "
            f"({' '.join(f'{key} null' for key in given)}), or say --data.zca false"
        )


def check_hold(hold: str, workers: int | None) -> None:
    """Refuse processes that cannot be, or would have nothing to do."""
    if hold not in ("memory", "disk"):
        raise UserError(f"--data.hold must be memory or disk, got {hold!r}")
    if workers is not None and workers < 0:
        raise UserError(f"--data.workers must be at least 0, got {workers}")
    if workers is not None and hold == "memory":
        raise UserError(
            "--data.workers are for images held on disk: add --data.hold disk, or drop it (--data.workers null)"
        )
