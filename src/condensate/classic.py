"""The augmentation DC's sets were scored under: one operator an image, for training networks only."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from condensate.errors import UserError, unknown

OPS = ("crop", "scale", "rotate", "noise")


@final
@dataclass(frozen=True, eq=False)
class Distortion:
    """What was drawn for each image of a batch, neutral but for its operator; made by ``ClassicAugment.draw``.

    Args:
        shift: (n, 2), integers: how many rows below and columns to the right a pixel is read.
        sides: (n, 2), integers: height and width the image is resized to before it is cut or padded back.
        degrees: (n,), by which the image is turned, counter-clockwise.
        fill: (n, 2): what stands beyond the border, as a share of the batch's channel means and a share of their mean.
        noise: (n, C, H, W), what is added; None: nothing.
        shape: (C, H, W) of the images it was drawn for.
        identity: Whether no operator was to be drawn, so that images come back as they are.
    """

    shift: Tensor
    sides: Tensor
    degrees: Tensor
    fill: Tensor
    noise: Tensor | None
    shape: tuple[int, int, int]
    identity: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Each image changed as drawn for it, in new memory: (n, C, H, W) -> (n, C, H, W), on any device."""
        if images.ndim != 4 or len(images) != len(self.degrees) or tuple(images.shape[1:]) != self.shape:
            expected = (len(self.degrees), *self.shape)
            raise ValueError(f"expected images {expected} as drawn for, got {tuple(images.shape)}")
        if self.identity:
            return images
        (_, height, width), device = self.shape, images.device
        dtype = torch.promote_types(images.dtype, torch.float32)
        pixels = images.to(dtype)

        # Pixel k of a side resized from h to h' is pixel floor(k h / h') of the original. The resized image lies in the
        # middle of a square that holds both, halves rounded down as published, and so does the window that is kept.
        shift, sides = self.shift.to(device), self.sides.to(device)
        square = sides.amax(1).clamp(min=max(height, width))

        def from_centre(axis: int, side: int) -> Tensor:
            new = sides[:, axis, None]
            skipped = (square[:, None] - side) // 2 - (square[:, None] - new) // 2 + shift[:, axis, None]
            at = torch.arange(side, device=device) + skipped
            return torch.div(at * side, new, rounding_mode="floor").to(dtype) - (side - 1) / 2

        down, right = from_centre(0, height)[:, :, None], from_centre(1, width)[:, None, :]
        angle = self.degrees.to(device, dtype).deg2rad()[:, None, None]
        y, x = angle.cos() * down + angle.sin() * right, angle.cos() * right - angle.sin() * down
        inside = (y.abs() <= (height - 1) / 2) & (x.abs() <= (width - 1) / 2)

        # grid_sample counts from the centre in halves of a side; at whole pixels, for all but rotate, it only copies.
        grid = torch.stack((x / (width / 2), y / (height / 2)), -1)
        seen = functional.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
        means = pixels.mean((0, 2, 3))
        by_channel, by_mean = self.fill.to(device, dtype)[:, :, None].unbind(1)
        beyond = by_channel * means + by_mean * means.mean()
        seen = torch.where(inside[:, None], seen, beyond[:, :, None, None])
        return (seen if self.noise is None else seen + self.noise.to(device, dtype)).to(images.dtype)


@final
@dataclass(frozen=True)
class ClassicAugment:
    """DC augmentation: every image gets one operator, drawn uniformly, with its strength. For training networks only.

    Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021,
    https://openreview.net/forum?id=mSAKhLYLSsl, as in their released code (``augment`` of its utils) but for: a crop
    reaches the far end of the padding (there one pixel less); the width is scaled by the width (there by the height);
    images are not overwritten; all draws come from the generator (there the global one); and rotate reads the image by
    bicubic interpolation about its exact centre (there by a cubic spline about one up to half a pixel away).

    Args:
        ops: Names from ``OPS``, each at most once; none leaves the images as they are.
        crop: The image is padded by this many pixels with the batch's channel means and cut at an offset of its own on
            each axis, uniform from 0 to twice as many. Made for images of 28 to 32 pixels.
        scale: Height and width are resized, each by its own factor uniform from 1 - scale to 1 + scale and rounded
            down, to the nearest pixel; what is missing is zero, what is too much is cut off evenly.
        rotate: The angle is one of the integers from -rotate to rotate - 1, in degrees; the mean of the batch's
            channel means is what stands outside.
        noise: Standard deviation of the normal noise that is added.
    """

    name: ClassVar[str] = "dc"

    ops: Sequence[str] = ("crop", "scale", "rotate")
    _: KW_ONLY
    crop: int = 4
    scale: float = 0.2
    rotate: int = 45
    noise: float = 0.001

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn."""
        for name in self.ops:
            if name not in OPS:
                raise unknown("operator of dc augmentation", name, OPS)
        if len(set(self.ops)) < len(self.ops):
            raise UserError(f"each augmentation may be named once, as one is drawn uniformly; got {list(self.ops)}")
        if not (self.crop >= 0 and 0 <= self.scale < 1 and self.rotate >= 1 and 0 <= self.noise < math.inf):
            raise UserError(
                f"dc augmentation needs crop >= 0, scale in [0, 1), rotate >= 1 and a finite noise >= 0, "
                f"got {self.crop}, {self.scale}, {self.rotate} and {self.noise}"
            )

    def draw(self, generator: torch.Generator, n: int, shape: tuple[int, int, int]) -> Distortion:
        """An operator and its strength for every image, on the generator's device.

        Args:
            generator: On the CPU or on a CUDA device.
            n: How many images.
            shape: (C, H, W) of one.
        """
        device = generator.device
        operator = torch.randint(max(len(self.ops), 1), (n,), generator=generator, device=device)

        def on(op: str) -> Tensor:
            return operator == (self.ops.index(op) if op in self.ops else -1)

        crop, scale, rotate = on("crop"), on("scale"), on("rotate")
        shift = torch.randint(-self.crop, self.crop + 1, (n, 2), generator=generator, device=device)
        sides = _numbers(device, *shape[1:])
        factor = torch.rand(n, 2, generator=generator, device=device) * (2 * self.scale) + (1 - self.scale)
        degrees = torch.randint(-self.rotate, self.rotate, (n,), generator=generator, device=device)
        noise = None
        if "noise" in self.ops:
            noise = torch.randn(n, *shape, generator=generator, device=device) * self.noise
            noise = noise.where(on("noise")[:, None, None, None], 0.0)
        return Distortion(
            shift.where(crop[:, None], 0),
            (factor * sides).long().clamp(min=1).where(scale[:, None], sides),
            degrees.where(rotate, 0),
            torch.stack((crop, rotate), 1).float(),
            noise,
            shape,
            identity=not self.ops,
        )

    def unpaired(self, images: Tensor, *generators: torch.Generator) -> Tensor:
        """The images, drawn for anew: (n, C, H, W) -> (n, C, H, W).

        Of several generators each draws for its own batch, an equal part of the images, in their order.
        """
        channels, height, width = images.shape[1:]
        parts = zip(images.split(len(images) // len(generators)), generators, strict=True)
        return torch.cat([self.draw(own, len(part), (channels, height, width))(part) for part, own in parts])


@lru_cache(maxsize=64)
def _numbers(device: torch.device, *values: int) -> Tensor:
    """Integers, put on a device once."""
    return torch.tensor(values, device=device)
