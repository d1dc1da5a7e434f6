"""Differentiable augmentation: drawn once, applied to every batch that must be seen alike."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from condensate.errors import UserError, unknown
from condensate.lanes import lanes

OPS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def transform(images: Tensor, theta: Tensor, color: Tensor, box: Tensor) -> Tensor:
    """Colour, affine sampling and cutout, each image by its own parameters: one program, without branches.

    Pure and differentiable in the images; a compiled program can take the parameters as inputs. Identity parameters
    and whole-pixel translations are exact where the sides are powers of two, else true to float rounding of a
    position. Types narrower than float32 are computed in float32, for bfloat16 cannot place a pixel.

    Args:
        images: (n, C, H, W); the result has their shape and type.
        theta: (n, 2, 3), affine map from a position in the result to the position in ``images`` that is read there,
            bilinearly, zero outside. A position is (x, y) in pixels from the centre of the image, so a rotation is
            one on images of any sides.
        color: (n, 3): brightness that is added, factor of saturation, factor of contrast.
        box: (n, 4), of integers: first row, last row + 1, first column, last column + 1 of what becomes zero.
    """
    height, width = images.shape[-2:]
    dtype = torch.promote_types(images.dtype, torch.float32)
    pixels, theta, color = images.to(dtype), theta.to(dtype), color.to(dtype)

    # Brightness b, saturation s, contrast c, in this order: x + b, then s(x - g) + g, then c(x - m) + m, with g the
    # mean over channels and m over the image. Both means move with b and neither with s, so the three together are
    # scx + (1 - s)cg + (1 - c)m + b.
    b, s, c = color[:, :, None, None, None].unbind(1)
    g = pixels.mean(1, keepdim=True)
    m = g.mean((2, 3), keepdim=True)
    pixels = torch.addcmul((1 - s) * c * g + ((1 - c) * m + b), pixels, s * c)

    row = torch.arange(height, dtype=dtype, device=images.device)
    column = torch.arange(width, dtype=dtype, device=images.device)
    top, bottom, left, right = box[:, :, None].unbind(1)
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    cut = rows[:, :, None] & columns[:, None, :]

    # No matrix product here: where its precision is lowered (TF32, bfloat16) pixels would be misplaced.
    x, y = column - (width - 1) / 2, row - (height - 1) / 2

    def source(line: Tensor, half: float) -> Tensor:
        by_x, by_y, shift = line[:, :, None].unbind(1)
        return ((by_x * x + shift) / half)[:, None, :] + (by_y * y / half)[:, :, None]

    # grid_sample counts from the centre in halves of a side: 2 lies outside, where zero is read.
    from_x, from_y = source(theta[:, 0], width / 2), source(theta[:, 1], height / 2)
    grid = torch.stack((from_x.masked_fill(cut, 2), from_y), -1)
    return functional.grid_sample(pixels, grid, padding_mode="zeros", align_corners=False).to(images.dtype)


# Operators (sets,), strengths (7, sets) from 0 to 1, and for each side a shift and a centre in pixels, (4, sets).
Numbers = tuple[Tensor, Tensor, Tensor]


@final
@dataclass(frozen=True, eq=False)
class Transform:
    """What was drawn for each set of images; made by ``Augment.draw``.

    Args:
        theta: (sets, 2, 3), color: (sets, 3), box: (sets, 4), as in ``transform``.
        size: (H, W) of the images it was drawn for.
        identity: Whether no operator was to be drawn, so that images come back as they are.
    """

    theta: Tensor
    color: Tensor
    box: Tensor
    size: tuple[int, int]
    identity: bool = False

    def parameters(self, which: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What ``transform`` takes after the images: those of set ``which[i]`` for image i, or of set i."""
        if which is None:
            return self.theta, self.color, self.box
        theta, color, box = (part.to(which.device)[which] for part in (self.theta, self.color, self.box))
        return theta, color, box

    def of_set(self, number: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """What ``transform`` takes after ``count`` images of one set: ``parameters`` of it, without a copy."""
        theta, color, box = (part[number].expand(count, *part.shape[1:]) for part in self.parameters())
        return theta, color, box

    def __call__(self, images: Tensor, which: Tensor | None = None) -> Tensor:
        """The images, each changed as drawn for its set.

        Args:
            images: (n, C, H, W), on any device.
            which: (n,), int64, the set of each image, as its label. None: image i is set i.
        """
        n = len(self.theta) if which is None else len(which)
        if images.ndim != 4 or len(images) != n or tuple(images.shape[2:]) != self.size:
            height, width = self.size
            raise ValueError(f"expected images ({n}, C, {height}, {width}) as drawn for, got {tuple(images.shape)}")
        if self.identity:
            return images
        theta, color, box = (part.to(images.device) for part in self.parameters(which))
        return transform(images, theta, color, box)


@final
@dataclass(frozen=True)
class Augment:
    """Differentiable augmentation: for every set of images one operator, drawn uniformly, with its strength.

    Siamese, for matching: one set a class, and the real and the synthetic images of a class are changed alike.
    Unpaired, for training networks: one set an image, and ``shared_op`` for one operator a batch.

        drawn = augment.draw(generator, classes, (32, 32))
        drawn(real, real_labels), drawn(synthetic, labels)

    Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021,
    https://arxiv.org/abs/2102.08259

    Args:
        ops: Names from ``OPS``, each at most once; none leaves the images as they are.
        flip: Probability of a horizontal flip.
        scale: Each axis is read at its own step, uniform from 1 / scale to scale.
        rotate: The angle is uniform from -rotate to rotate degrees.
        crop: Each axis is shifted by its own whole number of pixels, uniform up to this share of the side either way.
        cutout: A box of this share of each side becomes zero, its centre uniform over the image; it may reach beyond.
        brightness: What is added is uniform from -brightness / 2 to brightness / 2.
        saturation: The factor of each pixel's distance to its mean over channels is uniform from 0 to saturation.
        contrast: The factor of each value's distance to the image's mean is uniform from contrast to 1 + contrast.
    """

    name: ClassVar[str] = "dsa"

    ops: Sequence[str] = OPS
    _: KW_ONLY
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    crop: float = 0.125
    cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn."""
        if isinstance(self.ops, str):
            raise UserError(f"augmentation ops must be a list of names, got {self.ops!r}; name one as ({self.ops!r},)")
        for name in self.ops:
            if name not in OPS:
                raise unknown("augmentation", name, OPS)
        if len(set(self.ops)) < len(self.ops):
            raise UserError(f"each augmentation may be named once, as one is drawn uniformly; got {list(self.ops)}")
        for name in ("flip", "crop", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation {name} must be in [0, 1], got {getattr(self, name)}")
        if not self.scale >= 1:
            raise UserError(f"augmentation scale must be at least 1, got {self.scale}")

    def draw(
        self, generator: torch.Generator, sets: int, size: tuple[int, int], *, shared_op: bool = False
    ) -> Transform:
        """An operator and its strength for every set, on the generator's device.

        All strengths are drawn whatever the operators are, so what the generator gives next depends on neither.

        Args:
            generator: On the CPU or on a CUDA device.
            sets: How many.
            size: (H, W) of the images.
            shared_op: Whether all sets get the same operator, each with its own strength.
        """
        return self.draw_each([generator], sets, size, shared_op=shared_op)

    def draw_each(
        self, generators: Sequence[torch.Generator], sets: int, size: tuple[int, int], *, shared_op: bool = False
    ) -> Transform:
        """What ``draw`` gives for every generator, one after another: ``sets`` for each, computed together."""
        if len(generators) == 1:
            return self.of_numbers([self.numbers(generators[0], sets, size, shared_op=shared_op)], size)
        drawn = list[Numbers]()
        with lanes(generators[0].device) as lane:
            for place, generator in enumerate(generators):
                with lane(place):
                    drawn.append(self.numbers(generator, sets, size, shared_op=shared_op))
        return self.of_numbers(drawn, size)

    def of_numbers(self, drawn: Sequence[Numbers], size: tuple[int, int]) -> Transform:
        """What ``draw`` makes of the ``numbers`` of one or more draws, one after another, computed together."""
        operator, strengths, whole = (torch.cat(parts, -1) if len(parts) > 1 else parts[0] for parts in zip(*drawn))

        def column(*values: float) -> Tensor:
            return _column(operator.device, *values)

        def on(op: str) -> int:
            return self.ops.index(op) if op in self.ops else -1

        turn = math.radians(self.rotate)
        ops, low, high, neutral = zip(  # of every strength; all at once, for a GPU waits for the host here
            (on("color"), -self.brightness / 2, self.brightness / 2, 0.0),
            (on("color"), 0.0, self.saturation, 1.0),
            (on("color"), self.contrast, self.contrast + 1, 1.0),
            (on("rotate"), -turn, turn, 0.0),
            (on("flip"), 0.0, 1.0, 1.0),  # below which probability is mirrored: 1 never is
            (on("scale"), 1 / self.scale, self.scale, 1.0),
            (on("scale"), 1 / self.scale, self.scale, 1.0),
        )
        span = [most - least for least, most in zip(low, high)]
        strengths = strengths * column(*span) + column(*low)
        strengths = torch.where(operator == column(*ops), strengths, column(*neutral))
        *color, angle, flipped, scale_x, scale_y = strengths
        scale_x = scale_x * torch.where(flipped < self.flip, -1.0, 1.0)

        holes = [self._hole(side) for side in size]
        shift = whole[0::2].masked_fill(operator != on("crop"), 0)
        first = whole[1::2] - column(*(hole // 2 for hole in holes))
        bounds = torch.stack((first.clamp(min=0), torch.minimum(first + column(*holes), column(*size))), 1)
        box = bounds.flatten(0, 1).masked_fill(operator != on("cutout"), 0)

        down, right = shift
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack((cos * scale_x, -sin * scale_y, right, sin * scale_x, cos * scale_y, down), 1)
        height, width = size
        return Transform(
            theta.unflatten(1, (2, 3)), torch.stack(color, 1), box.T.contiguous(), (height, width), not self.ops
        )

    def numbers(
        self, generator: torch.Generator, sets: int, size: tuple[int, int], *, shared_op: bool = False
    ) -> Numbers:
        """All that a ``draw`` takes from the generator."""

        def integer(low: int, high: int, count: int = sets) -> Tensor:
            return torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)

        operator = integer(0, max(len(self.ops) - 1, 0), 1 if shared_op else sets).expand(sets)
        strengths = torch.rand(7, sets, generator=generator, device=generator.device)
        whole = []
        for side in size:
            reach = math.floor(self.crop * side + 0.5)
            whole += [integer(-reach, reach), integer(0, side - self._hole(side) % 2)]
        return operator, strengths, torch.stack(whole)

    def _hole(self, side: int) -> int:
        return math.floor(self.cutout * side + 0.5)

    def unpaired(self, images: Tensor, *generators: torch.Generator) -> Tensor:
        """The images, drawn for anew as networks are trained, with one operator a batch: (n, C, H, W) as they came.

        Of several generators each draws for its own batch, an equal part of the images, in their order.
        """
        size, each = (images.shape[2], images.shape[3]), len(images) // len(generators)
        return self.draw_each(generators, each, size, shared_op=True)(images)


@lru_cache(maxsize=64, typed=True)
def _column(device: torch.device, *values: float) -> Tensor:
    """Numbers as a column (n, 1), put on a device once."""
    return torch.tensor(values, device=device)[:, None]
