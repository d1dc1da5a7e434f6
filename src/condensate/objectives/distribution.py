"""Distribution matching: DM, and LoDM over low-rank storage."""

import hashlib
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from condensate.augment import Augment, Transform, transform
from condensate.compute import Compute, parts, uploaded
from condensate.data import Split
from condensate.errors import UserError
from condensate.networks import Network, on_tiles
from condensate.objectives.base import Layers, Objective, OfLabels, Room, Work, check_alike
from condensate.objectives.kept import KeptMeans
from condensate.ranks import ALONE, Ranks
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset

# Images of whole classes that are matched together: piece by piece their indices and weights (k, K), by which features
# become class means, and which classes they are of, (K,), 1 or 0.
Group = tuple[list[tuple[Tensor, Tensor]], Tensor]


class DistributionMatching(Objective):
    """Match the mean embedding of every class under freshly drawn random networks.

    Each episode draws a network and one augmentation T_c a class, and adds the gradient of

        sum over classes c of || mean f(T_c(real_c)) - mean f(T_c(synthetic_c)) ||^2

    where f are the network's features and real_c a batch of the class. Zhao & Bilen, "Dataset Condensation with
    Distribution Matching", WACV 2023, equation 5.

    Real features carry no gradient: they run chunk by chunk, in the precision and by the program of ``compute``. The
    synthetic side runs by groups of whole classes, and a class larger than a chunk piece by piece and twice, first for
    its mean; both are equal to one big graph. Networks with batch statistics take each side in one forward, as
    published.

    Several processes deal the classes out: each takes real and synthetic images of its own classes alone.

    Args:
        real: Training images.
        network: Re-initialised in place every episode; its parameters are frozen.
        augment: Drawn once a class, applied to real and synthetic images alike (siamese).
        streams: Source of the networks, batches and augmentations.
        compute: Precision of real features, compilation, tiles and chunk.
        ranks: Which of several processes this is.
        batch_real: Real images a class and episode, without replacement.
        updates: Of the synthetic images for each network drawn, 1 as published. The features of the real images, most
            of an episode's work, serve all of them.
    """

    keeps: ClassVar[bool] = True

    def __init__(
        self,
        real: Split,
        network: Network,
        augment: Augment,
        streams: Streams,
        compute: Compute | None = None,
        ranks: Ranks = ALONE,
        *,
        batch_real: int = 256,
        updates: int = 1,
    ) -> None:
        for key, value in (("batch_real", batch_real), ("updates", updates)):
            if value < 1:
                raise UserError(f"objective.{key} must be at least 1, got {value}")
        if network.batch_statistics and ranks.world > 1:
            raise UserError(
                "batch normalisation sees all classes in one batch, but of several processes each has classes of its "
                "own: take another normalisation, as in --network.norm instance, or one process without torchrun"
            )
        compute = compute or Compute()
        self.real, self.augment, self.streams = real, augment, streams
        self.batch_real, self.updates = batch_real, updates
        self.classes = len(real.counts())
        self.own = ranks.share(range(self.classes))
        self.size = (real.shape[1], real.shape[2])
        self.chunk = None if network.batch_statistics else compute.chunk
        self.piece = None if network.batch_statistics else compute.at_once
        self.network = (on_tiles(network) if compute.tiled else network).requires_grad_(False).train()
        self.network.to(memory_format=compute.memory_format)  # type: ignore[call-overload]
        self.low = self.network
        self.copied = compute.precision != torch.float32
        if self.copied:
            self.low = deepcopy(self.network).to(compute.precision)
        self._features = compute.program(_augmented_features(self.network, compute))
        self._low_features = compute.program(_augmented_features(self.low, compute))
        self.own_rows = real.labels.new_tensor(self.own)
        self.own_labels = self.own_rows.repeat_interleave(batch_real)
        self.kept: KeptMeans | None = None
        self._groups = OfLabels(self._grouped)

    @classmethod
    def planned(cls, classes: int, images: int, **options: Any) -> Work:
        """The real batches without gradient, once; the synthetic images with, at every update."""
        real, updates = classes * int(options["batch_real"]), int(options.get("updates", 1))
        return Work(features=real, gradients=images * updates, parts=classes)

    @classmethod
    def room(cls, layers: Layers, compute: Compute, classes: int, images: int, **options: Any) -> Room:
        """Two layers of a piece of real images, or all layers of the synthetic images of whole classes."""
        real = 2 * layers.largest * compute.at_once * compute.precision.itemsize / 4
        whole = max(images // classes, min(compute.at_once, images))
        return Room(max(real, layers.every * (whole if whole <= compute.chunk else compute.at_once)))

    def reuse(self, folder: Path, kind: dict[str, Any]) -> None:
        """Take the real means of an episode from a file of ``folder``, and keep them there for other runs.

        They depend on neither storage, start, budget nor learning rate: a table of these computes them once a seed.
        """
        own = {"kind": kind, "batch_real": self.batch_real, "classes": self.own}
        name = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
        with torch.no_grad():
            features = self.network.features(torch.zeros(2, *self.real.shape, device=self.real.device))
        self.kept = KeptMeans(folder / f"{name}.means", (self.classes, features.shape[1]))

    @property
    def recordable(self) -> bool:
        """Unless images are read from disk, or their means from a file."""
        return self.real.in_memory and self.kept is None

    def gradients(self, synthetic: SyntheticDataset, number: int) -> Iterator[Tensor]:
        """One network and one augmentation a class, and updates towards the real means under these."""
        drawn = self.begin(synthetic, number)
        target = self._real_means(drawn, number)
        for _ in range(self.updates):
            yield self.match(synthetic, drawn, target)

    def begin(self, synthetic: SyntheticDataset, number: int) -> Transform:
        """Draw the network and the augmentation of an episode."""
        check_alike(synthetic, self.real)
        if synthetic.labels.ndim != 1:
            raise UserError("distribution matching needs one class an image; soft labels have no class means")
        self.network.reset_(self.streams("network", number))
        if self.copied:
            state, low = self.network.state_dict(), self.low.state_dict()
            torch._foreach_copy_(list(low.values()), [state[name] for name in low])
        return self.augment.draw(self.streams("augment", number), self.classes, self.size)

    @torch.no_grad()
    def real_features(self, index: Tensor, labels: Tensor, drawn: Transform) -> Tensor:
        """Features, float32, of the real images at ``index``, augmented as their classes are: (k,) -> (k, D)."""
        return self._low_features(self.real.images(index), *drawn.parameters(labels)).float()

    @torch.no_grad()
    def _real_means(self, drawn: Transform, number: int) -> Tensor:
        """Mean features of a batch of every class of this process, (K, D); the others' rows count for nothing."""
        if not self.own:
            return self.real.labels.new_zeros(self.classes, 1, dtype=torch.float32)
        means = self.kept.get(number) if self.kept else None
        if means is not None:
            return uploaded(means, self.real.device)
        batches = self._real_batches(number)
        if not self.real.expects(batches[0][0]):
            self.real.expect(part for later in count(number) for part, _ in self._real_batches(later))
        total: Tensor | float = 0.0
        for part, which in batches:
            total = total + _one_hot(which, self.classes).T @ self.real_features(part, which, drawn)
        assert isinstance(total, Tensor)
        means = total / self.batch_real
        if self.kept:
            self.kept.put(number, means)
        return means

    def _real_batches(self, number: int) -> list[tuple[Tensor, Tensor]]:
        """Indices and labels of an episode's real images of this process, all classes alike, chunk by chunk."""
        if self.streams.device.type == "cuda":
            index = self.real.sample_all(self.batch_real, self.streams("real", number))[self.own_rows].flatten()
        else:
            draw = partial(self.streams, "real", number)
            index = torch.cat([self.real.sample(label, self.batch_real, draw(label)) for label in self.own])
        count = 1 if self.piece is None else parts(len(index), self.piece)
        return list(zip(index.tensor_split(count), self.own_labels.tensor_split(count), strict=True))

    @torch.no_grad()
    def synthetic_means(self, synthetic: SyntheticDataset, drawn: Transform) -> Tensor:
        """Mean features of the synthetic images of every class, (K, D); zero where there are none."""
        total: Tensor | float = 0.0
        for index in torch.arange(len(synthetic), device=synthetic.labels.device).split(self.chunk or len(synthetic)):
            labels = synthetic.labels[index]
            features = self._seen(synthetic.images(index), labels, drawn)
            total = total + _one_hot(labels, self.classes).T @ features
        assert isinstance(total, Tensor)
        return total / synthetic.labels.bincount(minlength=self.classes).clamp(min=1)[:, None]

    def match(self, synthetic: SyntheticDataset, drawn: Transform, target: Tensor) -> Tensor:
        """Add the gradient towards the class means ``target`` (K, D) to what is stored; the loss."""
        loss = target.new_zeros(())
        for pieces, present in self._groups(synthetic.labels):
            mean = None
            if len(pieces) > 1:
                with torch.no_grad():
                    mean = sum(
                        w.T @ self._seen(synthetic.images(piece), synthetic.labels[piece], drawn) for piece, w in pieces
                    )
            for piece, w in pieces:
                images = synthetic.images(piece).detach().requires_grad_()
                features = self._seen(images, synthetic.labels[piece], drawn)
                difference = (w.T @ features.detach() if mean is None else mean) - target
                (gradient,) = torch.autograd.grad(features, images, 2 * w @ difference)
                synthetic.backward(piece, gradient)
            loss += (difference.square().sum(1) * present).sum()
        return loss

    def _grouped(self, labels: Tensor) -> list[Group]:
        """The groups of a set of these labels."""
        groups = []
        for index in _whole_classes(labels, self.piece, self.own):
            whole = self.chunk is None or len(index) <= self.chunk  # else it goes through twice
            groups.append(_group(labels, index, self.classes, None if whole else self.piece))
        return groups

    def _seen(self, images: Tensor, labels: Tensor, drawn: Transform) -> Tensor:
        return self._features(images, *drawn.parameters(labels))


def _augmented_features(network: Network, compute: Compute) -> Callable[..., Tensor]:
    """The program (images, augmentation parameters) -> features (n, D) of a network."""
    dtype = next(network.parameters()).dtype

    def features(images: Tensor, theta: Tensor, color: Tensor, box: Tensor) -> Tensor:
        seen = transform(images, theta, color, box)
        return network.features(seen.to(dtype, memory_format=compute.memory_format))

    return features


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """Rows of float32, of which each is 1 in its class; the library's looks at labels on the host."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def _group(labels: Tensor, index: Tensor, classes: int, piece: int | None) -> Group:
    """The group of the images at ``index``, divided into pieces or, if None, whole."""
    weights = _one_hot(labels[index], classes)
    count = weights.sum(0)
    weights = weights / count.clamp(min=1)
    pieces = 1 if piece is None else parts(len(index), piece)
    return list(zip(index.tensor_split(pieces), weights.tensor_split(pieces), strict=True)), (count > 0).float()


def _whole_classes(labels: Tensor, piece: int | None, own: list[int]) -> list[Tensor]:
    """Indices of images of the classes ``own``, by groups of whole classes of at most ``piece`` images, or of one."""
    order = labels.argsort(stable=True)
    if piece is None:
        return [order]
    of_classes = order.split(labels.bincount().tolist())
    held = [of_classes[label] for label in own if label < len(of_classes) and len(of_classes[label])]
    sizes = {len(of_class) for of_class in held}
    if len(sizes) == 1:  # groups are of one size, too, where a number of them allows it: that is one program
        some = -(-len(held) // parts(len(held), max(1, piece // sizes.pop())))
        return [torch.cat(held[first : first + some]) for first in range(0, len(held), some)]
    groups: list[list[Tensor]] = [[]]
    for of_class in held:
        if groups[-1] and sum(map(len, groups[-1])) + len(of_class) > piece:
            groups.append([])
        groups[-1].append(of_class)
    return [torch.cat(group) for group in groups if group]
