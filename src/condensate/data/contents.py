"""What a data set holds before it is normalised, and the checks that it is one."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from condensate.errors import UserError

_CHUNK = 1 << 25  # bytes hashed at a time, several at once; part of what a fingerprint is


@dataclass(frozen=True)
class Contents:
    """Images (N, C, H, W), uint8, and labels (N,), int64, of both splits, on the CPU and contiguous.

    Raises:
        UserError: If a split is empty, or images differ in shape or do not pair with labels.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the four tensors belong together."""
        train, test = tuple(self.train_images.shape[1:]), tuple(self.test_images.shape[1:])
        if train != test:
            raise UserError(f"test images must have the shape of the training images, {train}, got {test}")
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if len(images) != len(labels):
                raise UserError(
                    f"there must be one label an image, got {len(images)} {split} images, {len(labels)} labels"
                )

    def tensors(self) -> dict[str, Tensor]:
        """The four tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "classes"}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over pixels, labels and class names."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        whole = hashlib.sha256(json.dumps([shapes, self.classes], sort_keys=True).encode())
        for tensor in self.tensors().values():
            data = tensor.numpy().reshape(-1).view(np.uint8).data
            with ThreadPoolExecutor() as pool:
                parts = (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
                for digest in pool.map(lambda part: hashlib.sha256(part).digest(), parts):
                    whole.update(digest)
        return whole.hexdigest()


def as_images(value: object, split: str) -> Tensor:
    """Images as a new tensor (N, C, H, W), uint8; accepts what ``from_arrays`` accepts."""
    images = _tensor(value, f"{split} images")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] > 4 and images.shape[3] <= 4:
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] > 4 or 0 in images.shape:
        raise UserError(
            f"{split} images must be (N, C, H, W), (N, H, W, C) or (N, H, W) with 1 to 4 channels, "
            f"got {tuple(images.shape)}"
        )
    if images.is_floating_point():
        if not bool(((images >= 0) & (images <= 1)).all()):
            low, high = float(images.min()), float(images.max())
            raise UserError(f"{split} images in floating point must lie in 0 to 1, got {low:g} to {high:g}")
        images = (images * 255).round().to(torch.uint8)
    if images.dtype != torch.uint8:
        raise UserError(f"{split} images must be uint8, or floating point in 0 to 1, got {images.dtype}")
    return images.contiguous()


def check_labels(train: object, test: object, classes: Sequence[str] | None) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Labels as (N,) int64 tensors, and the class names.

    Raises:
        UserError: If labels are not integers from 0 to K-1, or a class has no training images or another's name.
    """
    training, testing = _integers(train, "train"), _integers(test, "test")
    present = torch.from_numpy(np.unique(training.numpy()))
    names = tuple(classes) if classes is not None else None
    count = int(present[-1]) + 1 if names is None else len(names)
    for split, labels in (("train", training), ("test", testing)):
        wrong = ((labels < 0) | (labels >= count)).nonzero().flatten()
        if len(wrong):
            where = int(wrong[0])
            raise UserError(
                f"{split} labels must be integers from 0 to {count - 1}, one for each of {count} classes, "
                f"got {int(labels[where])} at position {where}"
            )
    if names is not None and len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"class names must differ, for they tell classes apart; {twice!r} comes more than once")
    if len(present) < count:
        absent = int((torch.cat([present, torch.tensor([count])]) != torch.arange(len(present) + 1)).nonzero()[0])
        named = f" ({names[absent]})" if names is not None else ""
        raise UserError(f"class {absent}{named} has no training images; number the classes from 0 without gaps")
    return training, testing, names if names is not None else tuple(str(label) for label in range(count))


def _integers(value: object, split: str) -> Tensor:
    labels = _tensor(value, f"{split} labels")
    if labels.ndim != 1 or not len(labels) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(
            f"{split} labels must be integers from 0 to K-1, one an image, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    return labels.long()


def _tensor(value: object, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{what} must be a PyTorch tensor or a NumPy array of numbers, got {type(value).__name__}"
        ) from error
