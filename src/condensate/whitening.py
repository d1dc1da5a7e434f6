"""ZCA whitening: the pixels of a data set decorrelated, in place of normalisation.

The convention of the field (Krizhevsky, "Learning multiple layers of features from tiny images", 2009, appendix A;
Cazenavette et al., "Dataset distillation by matching training trajectories", CVPR 2022): a flattened image x of 0..1
pixels becomes ``(x - mean) U (S + 0.1)^(-1/2) U'``, with mean and covariance U S U' of the training images.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from condensate.atomic import replacing
from condensate.errors import UserError

MOST_VALUES = 3072  # of an image, 3x32x32
FLOOR = 0.1  # added to every variance, as published
_CHUNK = 1024  # images whose products a float32 sums exactly: 1024 * 128^2 = 2^24


@dataclass(frozen=True, eq=False)
class Whitening:
    """A whitening and its inverse; images decide the device, each product is worked out there once.

    Args:
        mean: Of the training pixels, (D,) float32 on the CPU, scale 0 to 1; D = C*H*W.
        basis: U, (D, D) float32 on the CPU: eigenvectors of the covariance (divisor N-1) in columns.
        variances: S, (D,) float32 on the CPU: its eigenvalues.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    _products: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the three belong together."""
        values = len(self.mean)
        if self.basis.shape != (values, values) or self.variances.shape != self.mean.shape:
            raise ValueError(f"a whitening of {values} values needs U {values}x{values}, got {tuple(self.basis.shape)}")
        if any(tensor.dtype != torch.float32 for tensor in self.tensors().values()):
            raise ValueError("a whitening is held in float32")

    def whiten(self, images: Tensor) -> Tensor:
        """Images (k, C, H, W) of 0..1 pixels, whitened."""
        mean, matrix = self._product(-0.5, images.device)
        with _full_float32(images.device):
            return ((images.flatten(1).float() - mean) @ matrix).view(images.shape)

    def colour(self, images: Tensor) -> Tensor:
        """Inverse of ``whiten``: whitened images (k, C, H, W) as 0..1 pixels, not clipped."""
        mean, matrix = self._product(0.5, images.device)
        with _full_float32(images.device):
            return (images.flatten(1).float() @ matrix + mean).view(images.shape)

    def tensors(self) -> dict[str, Tensor]:
        """The three by their names in the file."""
        return {"mean": self.mean, "U": self.basis, "S": self.variances}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the three tensors."""
        whole = hashlib.sha256(str(len(self.mean)).encode())
        for tensor in self.tensors().values():
            whole.update(tensor.contiguous().numpy().data)
        return whole.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file, atomically; the same whitening gives the same bytes."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
        with replacing(path) as part:
            part.write_bytes(save(tensors, metadata={"condensate": json.dumps({"sha256": self.digest})}))

    def save_beside(self, path: str | os.PathLike[str]) -> None:
        """Write to the folder of ``path`` under its own name, unless it is there."""
        side = Path(path).with_name(file_name(self.digest))
        try:
            kept = read(side).digest == self.digest
        except UserError:
            kept = False
        if not kept:
            self.save(side)

    def _product(self, power: float, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean (D,) and U (S + 0.1)^power U' (D, D), worked out in float64 and held in float32 on the device."""
        key = power, device
        if key not in self._products:
            basis = self.basis.double()
            matrix = (basis * (self.variances.double() + FLOOR) ** power) @ basis.T
            self._products[key] = self.mean.to(device), matrix.float().to(device)
        return self._products[key]


def fit(images: Tensor | Iterable[Tensor]) -> Whitening:
    """The whitening of training images; the same images give the same whitening.

    The covariance is exact up to float64: products of the bytes are integers, which float32 sums exactly within a
    chunk. Signs of eigenvectors, which mean nothing, are such that each one's largest entry is positive.

    Args:
        images: (N, C, H, W), uint8; or parts of them in order, of at most 1,024 images each.

    Raises:
        UserError: An image has more than 3,072 values, or there is only one.
    """
    count, sums, products = 0, torch.zeros(()), torch.zeros(())
    for chunk in images.split(_CHUNK) if isinstance(images, Tensor) else images:
        if not count:
            check_size(chunk.shape[1:])
            values = chunk[0].numel()
            sums = torch.zeros(values, dtype=torch.float64)
            products = torch.zeros(values, values, dtype=torch.float64)
        count += len(chunk)
        with _full_float32(chunk.device):
            centred = chunk.flatten(1).float() - 128
            sums += centred.sum(0, dtype=torch.float64)
            products += centred.T @ centred
    if count < 2:
        raise UserError("ZCA is measured on at least 2 training images, got 1")
    mean = (sums / count + 128) / 255
    covariance = products.sub_(torch.outer(sums, sums / count)).div_((count - 1) * 255**2)
    variances, basis = torch.linalg.eigh(covariance)
    basis *= basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    return Whitening(mean.float(), basis.float().contiguous(), variances.clamp(min=0).float())


def check_size(shape: Sequence[int]) -> None:
    """Refuse images for which the matrix would be too large."""
    values = torch.Size(shape).numel()
    if values > MOST_VALUES:
        raise UserError(
            f"images of {'x'.join(map(str, shape))} have {values:,} values, and ZCA would need a matrix of "
            f"{values:,} x {values:,} numbers ({4e-9 * values**2:.1f} GB, saved with every set); at most "
            f"{MOST_VALUES:,} values are taken: make the images smaller with --data.size 32, or do without: "
            "--data.zca false"
        )


def side_bytes(shape: Sequence[int]) -> int:
    """Of the tensors of a whitening for images of this shape."""
    values = torch.Size(shape).numel()
    return 4 * values * (values + 2)


def file_name(digest: str) -> str:
    """Of the side file of a whitening."""
    return f"zca-{digest[:16]}.safetensors"


def read(path: str | os.PathLike[str]) -> Whitening:
    """What ``Whitening.save`` wrote.

    Raises:
        UserError: There is no such file, or it is damaged or not a whitening.
    """
    try:
        with safe_open(path, framework="pt") as file:
            digest = json.loads(file.metadata()["condensate"])["sha256"]
            whitening = Whitening(*(file.get_tensor(name) for name in ("mean", "U", "S")))
        if whitening.digest != digest:
            raise ValueError("its contents do not match their hash")
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a whitening, or is damaged ({error})") from error
    return whitening


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32 whatever the caller allows.

    The variances span four orders of magnitude, so that the rounding of TF32 or bfloat16 would show in pictures.
    """
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for place, precision in zip(places, before):
            place.fp32_precision = precision


def seen_alike(one: object, other: object) -> bool:
    """Whether the images of two sets are normalised and whitened alike; what a set does not say is not compared."""
    for name in ("mean", "std"):
        own, others = (getattr(images, name, None) for images in (one, other))
        if own is not None and others is not None and tuple(own) != tuple(others):
            return False
    if not (hasattr(one, "whitening") and hasattr(other, "whitening")):
        return True
    digests = {None if images.whitening is None else images.whitening.digest for images in (one, other)}
    return len(digests) == 1
