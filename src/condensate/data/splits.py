"""A split of a data set, as the rest of the package uses it."""

import warnings
from collections.abc import Iterable, Sequence
from typing import final

import torch
from torch import Tensor

from condensate.data.classes import by_class
from condensate.data.raw import InMemory, RawImages
from condensate.errors import UserError
from condensate.whitening import Whitening


@final
class Split:
    """Images of one split, uint8 in memory or encoded on disk, on one device and normalised when read.

    Args:
        raw: Images, (N, C, H, W), uint8; or floating point on the same scale of 0 to 255.
        labels: (N,), int64, from 0 to K-1, on the device of ``raw``.
        classes: K names. A class may have no images here.
        mean: C values on the scale 0 to 1.
        std: C values on the scale 0 to 1, above 0.
        whitening: Applied after the normalisation, which is then none: mean 0, std 1.
        seen: ``raw`` is normalised and whitened as the above say already, as synthetic images are.
    """

    def __init__(
        self,
        raw: Tensor | RawImages,
        labels: Tensor,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        whitening: Whitening | None = None,
        seen: bool = False,
    ) -> None:
        self.pixels = raw if isinstance(raw, RawImages) else InMemory(raw)
        self.labels, self.whitening, self.seen = labels, whitening, seen
        self.classes, self.mean, self.std = tuple(classes), tuple(mean), tuple(std)
        self._members = by_class(labels, len(self.classes))
        self._counts = torch.tensor([len(members) for members in self._members])
        self._sizes = self._counts.to(labels.device)
        centre, spread = torch.tensor([self.mean, self.std], dtype=torch.float64)[..., None, None]
        self._scale = (1 / (255 * spread)).to(self.device, torch.float32)
        self._shift = (-centre / spread).to(self.device, torch.float32)
        self._warned = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        return self.pixels.shape

    @property
    def device(self) -> torch.device:
        """Where images and labels are."""
        return self.pixels.device

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are in memory, not on disk."""
        return isinstance(self.pixels, InMemory)

    @property
    def raw(self) -> Tensor:
        """The pixels, (N, C, H, W), as they are held in memory.

        Raises:
            UserError: They are not.
        """
        if isinstance(self.pixels, InMemory):
            return self.pixels.pixels
        raise UserError("this needs all images in memory, but they are held on disk: --data.hold memory")

    def images(self, index: Tensor | None = None) -> Tensor:
        """Normalised or whitened images, float32: at ``index`` (k,) -> (k, C, H, W), or all of them."""
        raw = self.pixels.read(index)
        if self.seen:
            return raw.to(torch.float32, copy=True)
        images = raw.mul(self._scale).add_(self._shift)
        return images if self.whitening is None else self.whitening.whiten(images)

    @property
    def waited(self) -> float:
        """Seconds that reading images took so far, where they are on disk: of all splits of the data set."""
        return self.pixels.waited

    def expects(self, index: Tensor) -> bool:
        """Whether ``index`` was announced to be read next; of images in memory, always."""
        return self.pixels.expects(index)

    def expect(self, coming: Iterable[Tensor]) -> None:
        """Say at which indices images are read from now on, in place of what was said before.

        Images on disk are decoded ahead of that; those in memory need nothing. It may go on without end, and need not
        be true: what is read otherwise is decoded then.
        """
        self.pixels.expect(coming)

    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Indices (count,) of random images of one class, on the device of the images.

        Drawn without replacement, on the generator's device. A class of fewer than ``count`` images is drawn from
        with replacement; the first time that happens, a warning says so.

        Raises:
            UserError: If the class has no images here.
        """
        members = self._members[label]
        self._check_sampled(label)
        if count <= len(members):
            pick = torch.randperm(len(members), generator=generator, device=generator.device)[:count]
        else:
            self._warn_of_replacement(count)
            pick = torch.randint(len(members), (count,), generator=generator, device=generator.device)
        return members[pick.to(members.device)]

    def sample_all(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices (K, count) of random images of every class, on the device of the images, in a single draw.

        As ``sample``, but of other numbers and at a cost that hardly grows with the classes: on a GPU every draw is
        several launches. No draw waits for the GPU. The order is that of one random number an image: of as many bits as
        31 leave beside the class, for a GPU sorts 32 in half the time of 64.

        Raises:
            UserError: If a class has no images here.
        """
        for label in range(len(self.classes)):
            self._check_sampled(label)
        where, device = generator.device, self.labels.device
        bits = min(30, 31 - (len(self.classes) - 1).bit_length())
        number = torch.randint(2**bits, (len(self),), generator=generator, device=where, dtype=torch.int32)
        order = torch.add(number.to(device), self.labels.int(), alpha=2**bits).argsort()
        place = torch.arange(count, device=device).expand(len(self.classes), count)
        if count > min(map(len, self._members)):
            self._warn_of_replacement(count)
            again = torch.rand(len(self.classes), count, generator=generator, device=where, dtype=torch.float64)
            size = self._sizes[:, None]
            place = torch.where(size < count, (again.to(device) * size).long(), place)
        return order[self._sizes.cumsum(0)[:, None] - self._sizes[:, None] + place]

    def _check_sampled(self, label: int) -> None:
        if not len(self._members[label]):
            raise UserError(f"cannot sample class {label} ({self.classes[label]}): it has no images in this split")

    def counts(self) -> Tensor:
        """Images per class, (K,), int64, on the CPU."""
        return self._counts.clone()

    def subset(self, index: Tensor) -> "Split":
        """The images at ``index`` (k,) as a split of the same classes and normalisation."""
        index = index.to(self.device)
        raw, labels = self.pixels.subset(index), self.labels[index]
        return self._of(raw, labels, self.classes)

    def of_classes(self, labels: Sequence[int], names: Sequence[str] | None = None) -> "Split":
        """The images of these classes alone, numbered anew in the order given and, if given, named so."""
        number = self.labels.new_full((len(self.classes),), -1)
        number[list(labels)] = torch.arange(len(labels), device=number.device)
        new = number[self.labels]
        index = (new >= 0).nonzero().flatten()
        names = [self.classes[label] for label in labels] if names is None else names
        return self._of(self.pixels.subset(index), new[index], names)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> "Split":
        """The same images under another normalisation."""
        return Split(self._raw_pixels(), self.labels, self.classes, mean, std)

    def seen_through(self, whitening: Whitening | None) -> "Split":
        """The same images whitened so, or as 0..1 pixels if None, in place of their normalisation."""
        channels = self.shape[0]
        pixels = self._raw_pixels()
        return Split(pixels, self.labels, self.classes, (0.0,) * channels, (1.0,) * channels, whitening)

    def to(self, device: torch.device | str) -> "Split":
        """This split on ``device``: itself if it is there already."""
        raw = self.pixels.to(device)
        if raw is self.pixels:
            return self
        return self._of(raw, self.labels.to(device), self.classes)

    def _of(self, raw: RawImages, labels: Tensor, classes: Sequence[str]) -> "Split":
        return Split(raw, labels, classes, self.mean, self.std, self.whitening, self.seen)

    def _raw_pixels(self) -> RawImages:
        if self.seen:
            raise UserError("images that are normalised already cannot be normalised otherwise")
        return self.pixels

    def _warn_of_replacement(self, count: int) -> None:
        if self._warned:
            return
        self._warned = True
        small = [f"{name} ({size})" for name, size in zip(self.classes, self._counts.tolist()) if 0 < size < count]
        more = f" and {len(small) - 10} more" if len(small) > 10 else ""
        warnings.warn(
            f"{count} images of a class are asked for, but some have fewer and are sampled with replacement: "
            f"{', '.join(small[:10])}{more}",
            stacklevel=3,
        )
