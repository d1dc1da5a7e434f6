"""The interface of every storage, and how many images a budget holds."""

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from condensate.errors import UserError, unknown

Shape = tuple[int, int, int]

FLOAT_BITS = 32


@dataclass(frozen=True)
class Cost:
    """What a storage takes: how many numbers, and how many bits they fill."""

    numbers: int
    bits: int


class Parameterization(nn.Module, ABC):
    """How synthetic images are stored.

    Construction draws nothing: call ``reset_`` (noise) or ``encode_`` (real images) before use.

    Args:
        n: Number of images, at least 1.
        shape: Of one image, (C, H, W).
    """

    def __init__(self, n: int, shape: Shape) -> None:
        super().__init__()
        if n < 1 or len(shape) != 3 or min(shape) < 1:
            raise UserError(
                f"a storage needs at least one image of at least one pixel, (C, H, W), got {n} of shape {shape}"
            )
        self.n = n
        self.shape: Shape = shape

    def __len__(self) -> int:
        """Number of images."""
        return self.n

    @abstractmethod
    def reset_(self, generator: torch.Generator, pixel_std: float | None = None) -> None:
        """Start from noise, in place.

        Args:
            generator: Where the noise is drawn from.
            pixel_std: Standard deviation of the decoded pixels; None for the published noise of the storage.
        """

    @abstractmethod
    def encode_(self, images: Tensor) -> None:
        """Start from images, in place: the stored images closest to ``images`` (n, C, H, W)."""

    @abstractmethod
    def decode(self, index: Tensor) -> Tensor:
        """Images at ``index``: (k,) -> (k, C, H, W), differentiable with respect to the parameters."""

    @classmethod
    @abstractmethod
    def cost(cls, n: int, shape: Shape, **options: Any) -> Cost:
        """What ``stored()`` takes for n images of this shape under these options."""

    @property
    def holds_pixels(self) -> bool:
        """Whether decoded images are 0..1 pixels: of whitened data, those before the whitening."""
        return False

    def stored(self) -> dict[str, Tensor]:
        """The tensors that go to disk, by name."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def restore_(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of ``stored``: take these tensors' values, in place."""
        self.load_state_dict(tensors)

    def options(self) -> dict[str, Any]:
        """Keyword-only constructor arguments, which every storage keeps as attributes of the same names."""
        parameters = inspect.signature(type(self)).parameters.values()
        return {p.name: getattr(self, p.name) for p in parameters if p.kind is p.KEYWORD_ONLY}

    def subset(self, index: Tensor) -> Self:
        """A storage of the same kind with the images at ``index`` (k,) alone; stored tensors have a row an image."""
        dtype = next((parameter.dtype for parameter in self.parameters()), None)
        with index.device:  # made there: nothing is sent to a GPU
            chosen = type(self)(len(index), self.shape, **self.options()).to(dtype)
        chosen.restore_({name: tensor[index] for name, tensor in self.stored().items()})
        return chosen

    @classmethod
    def saves_nothing(cls, shape: Shape, **options: Any) -> str | None:
        """Why this storage under these options is no smaller than plain pixels, and what would be; None if it is."""
        return None

    def _check_images(self, images: Tensor) -> Tensor:
        if images.shape != (self.n, *self.shape):
            raise UserError(f"expected {self.n} images of shape {self.shape}, got a tensor of {tuple(images.shape)}")
        return images


def pixel_bits(ipc: int, shape: Shape) -> int:
    """Bits of ``ipc`` float32 images, the budget of one class at that many images per class."""
    channels, height, width = shape
    return FLOAT_BITS * ipc * channels * height * width


def capacity(
    cls: type[Parameterization], budget_bits: int, classes: int, shape: Shape, *, label_bits: int = 0, **options: Any
) -> int:
    """Images per class that a budget holds: the largest k with ``cls.cost(k * classes)`` within the budget.

    Args:
        cls: The storage.
        budget_bits: Bits for the whole set.
        classes: Number of classes; all get equally many images.
        shape: Of one image, (C, H, W).
        label_bits: Bits of one image's label, where its place does not say it.
        **options: The storage's own, as for its constructor.

    Raises:
        UserError: The budget does not hold one image of each class, or the storage saves nothing over pixels.
    """
    if classes < 1:
        raise UserError(f"a budget is shared by at least one class, got {classes}")
    parameters = inspect.signature(cls).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise unknown(f"option of {cls.__name__}", name, known)
    reason = cls.saves_nothing(shape, **options)
    if reason:
        raise UserError(reason)

    def needed(k: int) -> int:
        return cls.cost(k * classes, shape, **options).bits + k * classes * label_bits

    def fits(k: int) -> bool:
        return needed(k) <= budget_bits

    if not fits(1):
        need = -(-needed(1) // 8)
        raise UserError(
            f"a budget of {budget_bits // 8:,} bytes holds less than one image of each of {classes} classes; "
            f"{need:,} bytes would: set --budget.bytes {need}"
        )
    low, high = 1, 2
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
