"""Memories: unions of sets, kept within a budget."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

from condensate.errors import UserError
from condensate.examples import Examples
from condensate.synthetic import SyntheticDataset, load


class NamedExamples(Examples, Protocol):
    """Examples whose classes have names: synthetic sets and splits of real data."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels."""


class Union(Dataset[tuple[Tensor, Tensor]]):
    """Several sets as one, the labels of each translated by the names of their classes.

    It is what networks are trained on (``fit``, ``evaluate``) and a ``torch.utils.data.Dataset`` of (image, label).

    Args:
        parts: Synthetic sets, or splits of real images, under one normalisation; at least one.
        classes: Names in the order of the labels wanted; absent: in the order they appear in the parts.
    """

    def __init__(self, parts: Iterable[NamedExamples], classes: Sequence[str] | None = None) -> None:
        self.parts = tuple(parts)
        if not self.parts:
            raise UserError("a union needs at least one set")
        names = dict.fromkeys(name for part in self.parts for name in part.classes)
        self.classes = tuple(names if classes is None else classes)
        for name in names:
            if name not in self.classes:
                raise UserError(f"class {name} of a set is not among the {len(self.classes)} of the union")
        seen_through = {(tuple(getattr(p, "mean", ())), tuple(getattr(p, "std", ()))) for p in self.parts}
        if len(seen_through) > 1:
            raise UserError(f"the sets of a union must have one normalisation, got {sorted(seen_through)}")
        translated = [self._labels(part) for part in self.parts]
        if any(labels.ndim == 2 for labels in translated):
            width = len(self.classes)
            translated = [one_hot(x, width).float() if x.ndim == 1 else x for x in translated]
        self.labels = torch.cat(translated)
        self._starts = torch.tensor([0, *(len(part) for part in self.parts)]).cumsum(0)

    def _labels(self, part: NamedExamples) -> Tensor:
        numbers = part.labels.new_tensor([self.classes.index(name) for name in part.classes], dtype=torch.int64)
        if part.labels.ndim == 1:
            return numbers[part.labels]
        return (
            part.labels.detach().new_zeros(len(part), len(self.classes)).index_copy_(1, numbers, part.labels.detach())
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Normalised image (C, H, W) and its label."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        place = torch.tensor([index % len(self)], device=self.labels.device)
        return self.images(place).detach()[0], self.labels[place[0]]

    def images(self, index: Tensor | None = None) -> Tensor:
        """Normalised images at ``index``, all if None: (k,) -> (k, C, H, W)."""
        if index is None:
            return torch.cat([part.images() for part in self.parts])
        which = torch.bucketize(index, self._starts[1:].to(index.device), right=True)
        places = [(which == number).nonzero().flatten() for number in range(len(self.parts))]
        found = [
            part.images(index[place] - start)
            for part, place, start in zip(self.parts, places, self._starts.tolist())
            if len(place)
        ]
        back = torch.cat(places).argsort()
        return torch.cat(found)[back]


def keep_first(synthetic: SyntheticDataset, per_class: int) -> SyntheticDataset:
    """The first images of every class, at most ``per_class``; a set with no more is itself."""
    each = synthetic.per_class
    if each is None:
        raise UserError("only a set of equally many images of every class, with hard labels, can be shrunk")
    if each <= per_class:
        return synthetic
    index = torch.arange(len(synthetic), device=synthetic.labels.device).view(-1, each)[:, :per_class]
    return synthetic.subset(index.flatten())


def save_memory(parts: Iterable[SyntheticDataset], folder: str | os.PathLike[str]) -> None:
    """Write the sets of a memory to ``folder``, numbered in their order."""
    for number, part in enumerate(parts):
        part.save(Path(folder) / f"{number:03d}.safetensors")


def load_memory(folder: str | os.PathLike[str], classes: Sequence[str] | None = None) -> Union:
    """The memory in ``folder``, as ``condensate continual`` keeps one of every step.

    Args:
        folder: That holds the sets of the memory.
        classes: As for ``Union``.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    files = [file for file in files if file.stem.isdigit()]
    if not files:
        raise UserError(f"no memory in {folder}; expected 000.safetensors and so on, as in .../step1/memory")
    return Union([load(file) for file in files], classes)


class Reservoir:
    """A class-balanced reservoir: which images of a stream, seen one by one and once, are kept.

    Chrysakis & Moens, "Online continual learning from imbalanced data", ICML 2020, algorithm 1 (CBRS). Until it is
    full it keeps everything. Then an image of a class that never was the largest takes the place of a random one of
    the largest class, and one of any other class that of a random one of its own, with the probability that keeps
    every image of the class equally likely.

    Args:
        capacity: Images kept at most; may be raised between experiences.
        generator: Source of all draws.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self.capacity, self.generator = capacity, generator
        self.kept: dict[int, list[int]] = {}
        self._seen: dict[int, int] = {}
        self._full: set[int] = set()

    def __len__(self) -> int:
        """Number of images kept."""
        return sum(map(len, self.kept.values()))

    def observe(self, item: int, label: int) -> None:
        """See image ``item`` of class ``label``."""
        self._seen[label] = self._seen.get(label, 0) + 1
        own = self.kept.setdefault(label, [])
        if len(self) < self.capacity:
            own.append(item)
            self._full.clear()  # of a larger reservoir, no class has had its share yet
            return
        most = max(map(len, self.kept.values()))
        largest = [other for other, items in self.kept.items() if len(items) == most]
        self._full |= set(largest)
        if label not in self._full:
            victim = self.kept[largest[self._draw(len(largest))]]
            victim.pop(self._draw(len(victim)))
            own.append(item)
        elif own and self._draw(self._seen[label]) < len(own):
            own[self._draw(len(own))] = item

    def _draw(self, count: int) -> int:
        device = self.generator.device
        return int(torch.randint(count, (), generator=self.generator, device=device))
