"""Image data in: two uint8 tensors, class names and a normalisation, from arrays, files, folders or the hub."""

from collections.abc import Sequence
from pathlib import Path

from condensate.data import cache, sources
from condensate.data.contents import Contents, as_images, check_labels
from condensate.data.decoding import decode
from condensate.data.sources import KNOWN, Known
from condensate.data.splits import ImageData, Split, measure
from condensate.errors import UserError
from condensate.whitening import fit

__all__ = ["KNOWN", "ImageData", "Known", "Split", "check_zca", "from_arrays", "load", "measure"]


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
) -> ImageData:
    """A data set, decoded once: later loads of the same files read the decoded images from a cache.

    The cache lies in ``$CONDENSATE_CACHE``, else in ``condensate`` under the XDG cache folder; it can be deleted at
    any time. Images are turned as their EXIF orientation says, and palettes become RGB. Images of other kinds, or
    of more than one kind or size, need ``channels`` or ``size``. Without ``path``, digits come with scikit-learn
    (1,297 to train, 500 to test) and everything else comes from the Hugging Face hub.

    Args:
        name: digits, mnist, fashion-mnist, svhn, cifar10, cifar100, tinyimagenet, or owner/name on the Hugging Face
            hub. With ``path``, any name: it is only shown. The subsets of ImageNet (imagenette, imagewoof, imagemeow,
            imagesquawk, imagefruit, imageyellow) need ``path``.
        path: A folder with train.parquet and test.parquet (columns image and label), or with class folders
            train/<class>/* and test/<class>/*, or <class>/* of which a fixed fifth is held for testing.
        mean: Subtracted, one value a channel on the scale 0 to 1; measured when absent.
        std: Divided by, one value a channel on the scale 0 to 1; measured when absent.
        validation: Part of the training images held out of training, 0 to below 1; the same ones whatever the seed.
        zca: Whiten pixels in place of normalising them, by the mean and covariance of the training images without the
            validation images; at most 3,072 values an image. Mean and std are then not taken.
        size: Side to which images are resized (shorter side, bicubic with antialiasing) and cropped at the centre.
        channels: 1 or 3, to which images are converted; transparency is dropped.

    Raises:
        UserError: For what the user can mend in the files or the arguments.
    """
    check_zca(mean, std, zca)
    if size is not None and size < 1:
        raise UserError(f"--data.size must be at least 1, got {size}")
    if channels not in (None, 1, 3):
        raise UserError(f"--data.channels must be 1 or 3, got {channels}")
    source = sources.at(Path(path).expanduser()) if path is not None else sources.named(name)

    def make() -> Contents:
        train, test, classes = source.read()
        train_labels, test_labels, classes = check_labels(train.labels, test.labels, classes)
        train_images, test_images = decode(train, test, size, channels)
        return Contents(train_images, train_labels, test_images, test_labels, classes)

    contents = cache.cached([source.digest, size, channels], make)
    whiten = cache.whitening if zca else None
    return ImageData.of(name, contents, mean=mean, std=std, validation=validation, whiten=whiten)


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
    whiten = (lambda images, _: fit(images)) if zca else None
    return ImageData.of(name, contents, mean=mean, std=std, validation=validation, whiten=whiten)


def check_zca(mean: Sequence[float] | None, std: Sequence[float] | None, zca: bool) -> None:
    """Refuse a normalisation where pixels are whitened."""
    given = [f"--data.{key}" for key, values in (("mean", mean), ("std", std)) if values is not None]
    if zca and given:
        raise UserError(
            f"ZCA takes the place of normalisation: drop {' and '.join(given)} "
            f"({' '.join(f'{key} null' for key in given)}), or say --data.zca false"
        )
