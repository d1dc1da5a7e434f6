"""A data set: its splits, alike in classes, shape and normalisation."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from condensate.data.archive import Stored
from condensate.data.classes import divide
from condensate.data.contents import Contents
from condensate.data.raw import InMemory, RawImages, measure
from condensate.data.splits import Split
from condensate.errors import UserError
from condensate.whitening import Whitening

Statistics = tuple[list[float], list[float]]  # mean and standard deviation, one a channel


@dataclass(frozen=True)
class ImageData:
    """A data set: its splits, alike in classes, shape and normalisation.

    Attributes:
        name: For people; nothing depends on it.
        train: What is trained on or condensed.
        test: What is scored.
        validation: Held out of the training images, or None.
        classes: Names in the order of the labels.
        mean: Per channel, scale 0 to 1; as given, or measured on ``train``, without the validation images.
        std: As ``mean``; measured with divisor N. A channel that is constant gets 1, so that it becomes 0.
        fingerprint: SHA-256 over pixels (on disk: encoded images), labels and class names of all splits; not over the
            normalisation.
        whitening: In place of normalisation (mean is then 0, std 1), or None; fitted as ``mean`` is measured.
    """

    name: str
    train: Split
    test: Split
    validation: Split | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    whitening: Whitening | None = None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to pixels before a network sees them, in plain JSON values."""
        zca = None if self.whitening is None else self.whitening.digest
        return {"mean": list(self.mean), "std": list(self.std), "zca": zca}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        return self.train.shape

    def to(self, device: torch.device | str) -> "ImageData":
        """The same data with every split on ``device``."""
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), validation=validation)

    def only(self, labels: Sequence[int]) -> "ImageData":
        """The images of these classes alone, which are numbered anew in the order given; names as in ``classes``."""
        names = tuple(self.classes[label] for label in labels)
        train, test = self.train.of_classes(labels, names), self.test.of_classes(labels, names)
        held = None if self.validation is None else self.validation.of_classes(labels, names)
        fingerprint = hashlib.sha256(f"{self.fingerprint}/{list(labels)}".encode()).hexdigest()
        return replace(self, train=train, test=test, validation=held, classes=names, fingerprint=fingerprint)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> "ImageData":
        """The same images under another normalisation."""
        held = None if self.validation is None else self.validation.normalised(mean, std)
        train, test = self.train.normalised(mean, std), self.test.normalised(mean, std)
        return replace(self, train=train, test=test, validation=held, mean=tuple(mean), std=tuple(std), whitening=None)

    def seen_through(self, whitening: Whitening) -> "ImageData":
        """The same images under another whitening, as that of a synthetic set networks were trained on."""
        if self.whitening is not None and self.whitening.digest == whitening.digest:
            return self
        train, test = self.train.seen_through(whitening), self.test.seen_through(whitening)
        held = None if self.validation is None else self.validation.seen_through(whitening)
        return replace(
            self, train=train, test=test, validation=held, mean=train.mean, std=train.std, whitening=whitening
        )

    @classmethod
    def of(
        cls,
        name: str,
        contents: Contents | Stored,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        validation: float = 0.0,
        whiten: Callable[[RawImages, str], Whitening] | None = None,
        statistics: Callable[[RawImages, str], Statistics] = lambda images, _: measure(images),
    ) -> Self:
        """Hold out validation images, measure what is not given, and put the parts together.

        Args:
            name: For people.
            contents: Images and labels.
            mean: As for ``load``.
            std: As for ``load``.
            validation: As for ``load``.
            whiten: Gives the whitening of training images under a fingerprint; None for none.
            statistics: Gives their mean and standard deviation per channel likewise.

        Raises:
            UserError: If the arguments do not fit the contents.
        """
        if not 0 <= validation < 1:
            raise UserError(f"--data.validation must be a part from 0 to below 1, got {validation}")
        images, labels, classes = _raw(contents.train_images), contents.train_labels, contents.classes
        fingerprint, held = contents.fingerprint, None
        if validation:
            kept, taken = divide(labels, validation, "validation", classes)
            held = images.subset(taken), labels[taken]
            images, labels = images.subset(kept), labels[kept]
            fingerprint = hashlib.sha256(f"{fingerprint}/{float(validation)}".encode()).hexdigest()
        _check_normalisation(mean, std, images.shape[0])
        whitening = None if whiten is None else whiten(images, fingerprint)
        if whitening is not None:
            mean, std = (0.0,) * images.shape[0], (1.0,) * images.shape[0]
        if mean is None or std is None:
            measured = statistics(images, fingerprint)
            mean = measured[0] if mean is None else mean
            std = [value or 1.0 for value in measured[1]] if std is None else std

        def split(raw: RawImages, labels: Tensor) -> Split:
            return Split(raw, labels, classes, mean, std, whitening)

        test = split(_raw(contents.test_images), contents.test_labels)
        rest = split(*held) if held else None
        train = split(images, labels)
        return cls(name, train, test, rest, classes, tuple(mean), tuple(std), fingerprint, whitening)


def _raw(images: Tensor | RawImages) -> RawImages:
    return images if isinstance(images, RawImages) else InMemory(images)


def _check_normalisation(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise UserError(
                f"--data.{key} must have one value for each of {channels} channels of the images, got {list(values)}; "
                "--data.channels 1 or 3 converts images"
            )
        if values is not None and not all(map(math.isfinite, values)):
            raise UserError(f"--data.{key} must be finite, got {list(values)}")
    if std is not None and min(std) <= 0:
        raise UserError(f"--data.std must be above 0, got {list(std)}")
