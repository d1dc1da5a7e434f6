"""Gradient matching: DC, with siamese augmentation DSA, and over low-rank storage LoDC and LoDSA."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.nn.modules.batchnorm import _BatchNorm

from condensate.augment import Augment, Transform
from condensate.compute import Compute
from condensate.data import Split
from condensate.errors import UserError, unknown
from condensate.examples import Examples, Held
from condensate.lanes import lanes
from condensate.losses import MeanLoss
from condensate.networks import Network, on_tiles
from condensate.objectives.base import Layers, Objective, OfLabels, Room, Work, check_alike
from condensate.objectives.programs import Named, inner_product, parameter_gradient, plain, squared_distance
from condensate.ranks import ALONE, Ranks
from condensate.streams import Streams
from condensate.synthetic import SyntheticDataset
from condensate.training import fit

State = tuple[Named, Named]  # parameters and buffers
Reader = Callable[[Tensor], tuple[Tensor, ...]]
Distance = Callable[[Named, Named], Tensor]

EPSILON = 1e-6  # in the denominator of every cosine, as published
STATISTICS_IMAGES = 16  # real images a class that move the running statistics of BatchNorm, as published


def row_cosine_distance(ours: Named, theirs: Named) -> Tensor:
    """Sum over parameters of two or more dimensions, and over their rows, of one minus the cosine; a scalar.

    A row is what makes one output: of a convolution O x I x k x k one of O, of a linear layer one unit's weights, of
    layer normalisation C x H x W one channel. Parameters of one dimension (biases, scales) count nothing, as in the
    released code. Zhao et al., ICLR 2021, section 2.4.
    """
    pairs = [(gradient.flatten(1), theirs[name].flatten(1)) for name, gradient in ours.items() if gradient.ndim > 1]
    return torch.stack([_cosine_distances(a, b).sum() for a, b in pairs]).sum()


def cosine_distance(ours: Named, theirs: Named) -> Tensor:
    """One minus the cosine of all parameters' gradients taken as one vector; a scalar."""
    return _cosine_distances(*(torch.cat([g.flatten() for g in (side[n] for n in ours)]) for side in (ours, theirs)))


def _cosine_distances(a: Tensor, b: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return 1 - (a * b).sum(-1) / (lengths + EPSILON)


DISTANCES: dict[str, Distance] = {"layerwise": row_cosine_distance, "mse": squared_distance, "cosine": cosine_distance}


class GradientMatching(Objective):
    """Match, class by class, the gradient that real and synthetic images give a network while it learns.

    Each episode draws a network theta and ``outer_loop`` times adds the gradient of

        sum over classes c of D(grad L(theta; T_c(synthetic_c)), grad L(theta; T_c(real_c)))

    where L is the mean cross-entropy and T_c the class's augmentation; between, theta is trained on the synthetic set
    for ``inner_loop`` epochs. Without augmentation this is DC: Zhao et al., "Dataset Condensation with Gradient
    Matching", ICLR 2021, algorithm 1; with it DSA: Zhao & Bilen, "Dataset Condensation with Differentiable Siamese
    Augmentation", ICML 2021.

    The gradient through the gradient is one ``torch.func`` program a class, which compiles, and no class waits for
    another. Real batches run chunk by chunk in the precision of ``compute``. A class of more synthetic images than a
    chunk runs twice: for its gradient g, then each piece for the pixel gradient of <its gradient, dD/dg>; both are
    equal to one big graph. BatchNorm layers take in 16 real images of every class before each match and are frozen
    during it, as published, so that chunks are exact for them too.

    Several processes deal the classes out for matching; each trains the network itself, and alike.

    Args:
        real: Training images.
        network: Re-initialised in place every episode and trained within; its type is that of the computation.
        augment: Drawn once a class and match, applied to real and synthetic images alike (siamese); training draws
            its own.
        streams: Source of the networks, batches, augmentations and the order of training.
        compute: Precision of real gradients, compilation, tiles and chunk.
        ranks: Which of several processes this is.
        outer_loop: Matches an episode, each of which yields.
        inner_loop: Epochs of training between two matches.
        batch_real: Real images a class and match, without replacement.
        batch_train: Images a step of training.
        lr_net: Learning rate of training, plain SGD.
        siamese: Whether images are matched and trained on under ``augment``, which is DSA, or as they are, which is DC.
        distance: D. "layerwise" as published (``row_cosine_distance``), "cosine" and "mse" over all parameters.
    """

    tiling: ClassVar[int] = 3

    def __init__(
        self,
        real: Split,
        network: Network,
        augment: Augment,
        streams: Streams,
        compute: Compute | None = None,
        ranks: Ranks = ALONE,
        *,
        outer_loop: int = 1,
        inner_loop: int = 1,
        batch_real: int = 256,
        batch_train: int = 256,
        lr_net: float = 0.01,
        siamese: bool = True,
        distance: Literal["layerwise", "mse", "cosine"] = "layerwise",
    ) -> None:
        loops = {"outer_loop": outer_loop, "inner_loop": inner_loop}
        for key, value in (loops | {"batch_real": batch_real, "batch_train": batch_train}).items():
            if value < 1:
                raise UserError(f"objective.{key} must be at least 1, got {value}")
        if not lr_net > 0:
            raise UserError(f"objective.lr_net must be above 0, got {lr_net}")
        if siamese and not augment.ops:
            raise UserError(
                "DSA matches augmented images, but augment.ops names no operator: name some, as in "
                "--augment.ops crop,scale,rotate, or set objective.siamese false, which is DC"
            )
        if distance not in DISTANCES:
            raise unknown("objective.distance", str(distance), DISTANCES)
        self.real, self.streams = real, streams
        self.augment = augment if siamese else Augment([])
        self.compute, self.ranks = compute or Compute(), ranks
        self.network = (on_tiles(network) if self.compute.tiled else network).requires_grad_(True)
        self.outer_loop, self.inner_loop = outer_loop, inner_loop
        self.batch_real, self.batch_train, self.lr_net = batch_real, batch_train, lr_net
        self.classes = len(real.counts())
        self.size = (real.shape[1], real.shape[2])
        self.dtype = next(network.parameters()).dtype
        self.distance = DISTANCES[distance]
        gradient = parameter_gradient(self.network, siamese, self.compute.memory_format)
        self._members = OfLabels(_members)
        self.lanes = lanes(real.device)
        self._gradient = self.compute.program(_in(self.dtype, gradient))
        self._match = self.compute.program(_pixel_gradient(gradient, self.distance))
        self._pull_back = self.compute.program(_pixel_gradient(gradient, inner_product))
        self._loss = self._to_train() if outer_loop > 1 else None

    @classmethod
    def planned(cls, classes: int, images: int, **options: Any) -> Work:
        """In the operations of a forward: 3 a real image, 7 a synthetic image matched, 3 one trained on.

        Back to the parameters is twice a forward. The way back through forward and backward to the pixels is four
        more, so a synthetic image counts as two forward and back and one forward.
        """
        outer, inner = int(options["outer_loop"]), int(options["inner_loop"])
        matched, trained = outer * images, (outer - 1) * inner * images
        real = outer * classes * int(options["batch_real"])
        return Work(features=matched, gradients=2 * matched + trained, real_gradients=real, parts=classes)

    @classmethod
    def room(cls, layers: Layers, compute: Compute, classes: int, images: int, **options: Any) -> Room:
        """All layers of a piece of real images there and back, or those of a class's synthetic ones twice that."""
        each = images // classes
        real = 2 * layers.every * compute.at_once * compute.precision.itemsize / 4
        return Room(max(real, 4.0 * layers.every * (each if each <= compute.chunk else compute.at_once)))

    @property
    def recordable(self) -> bool:
        """Where nothing is trained on the way, and no images are read from disk."""
        return self.outer_loop == 1 and self.real.in_memory

    def prepare(self, synthetic: SyntheticDataset, number: int) -> None:
        """Have the real images of this episode, and those after it, read ahead."""
        check_alike(synthetic, self.real)
        if synthetic.labels.ndim != 1:
            raise UserError("gradient matching goes class by class and needs one class an image, not soft labels")
        if self.real.in_memory:
            return
        labels = list(self._members(synthetic.labels))
        first = next(self._readings(labels, number), None)
        if first is not None and not self.real.expects(first):
            self.real.expect(index for later in count(number) for index in self._readings(labels, later))

    def gradients(self, synthetic: SyntheticDataset, number: int) -> Iterator[Tensor]:
        """One network, matched ``outer_loop`` times and trained between."""
        members = self._members(synthetic.labels)
        self.network.reset_(self.streams("network", number))
        for step in range(self.outer_loop):
            self._settle_statistics(list(members), number, step)
            yield self._add_gradient(synthetic, members, number, step)
            if step + 1 < self.outer_loop:
                self._train(synthetic, self.streams("inner", number, step))

    def _readings(self, labels: list[int], number: int) -> Iterator[Tensor]:
        """Indices of the real images that an episode reads in this process, in its order."""
        for step in range(self.outer_loop):
            if self.network.batch_statistics:
                yield self._for_statistics(labels, number, step)
            for batch in self._real_batches(self.ranks.share(labels), number, step):
                yield from self.compute.pieces(batch)

    def _real_batches(self, labels: list[int], number: int, step: int) -> Iterator[Tensor]:
        """Indices of the real images of these classes that are matched in a step, class by class."""
        if self.streams.device.type == "cuda":
            every = self.real.sample_all(self.batch_real, self.streams("real", number, step))
            return (every[label] for label in labels)
        draw = partial(self.streams, "real", number, step)
        return (self.real.sample(label, self.batch_real, draw(label)) for label in labels)

    def _for_statistics(self, labels: list[int], number: int, step: int) -> Tensor:
        draw = partial(self.streams, "statistics", number, step)
        return torch.cat([self.real.sample(label, STATISTICS_IMAGES, draw(label)) for label in labels])

    @torch.no_grad()
    def _settle_statistics(self, labels: list[int], number: int, step: int) -> None:
        """Move BatchNorm's running statistics by one batch of real images, then freeze them."""
        self.network.train()
        if not self.network.batch_statistics:
            return
        self.network(self.real.images(self._for_statistics(labels, number, step)).to(self.dtype))
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def _add_gradient(self, synthetic: SyntheticDataset, members: dict[int, Tensor], number: int, step: int) -> Tensor:
        """Add the gradient of one match to what is stored; the loss."""
        drawn = self.augment.draw(self.streams("augment", number, step), self.classes, self.size)
        low = self.dtype if self.compute.precision == torch.float32 else self.compute.precision
        state, low_state = self._state(self.dtype), self._state(low)
        loss = torch.zeros((), dtype=self.dtype, device=synthetic.labels.device)
        waiting: list[tuple[Tensor, Tensor]] = []
        mine = self.ranks.share(list(members))
        batches = zip(mine, self._real_batches(mine, number, step), strict=True)
        at_once = self.compute.chunk // max(self.batch_real, *map(len, members.values()))
        while some := list(islice(batches, max(1, min(at_once, len(self.lanes))))):
            found = []
            with self.lanes as lane:
                for place, (label, batch) in enumerate(some):
                    with lane(place):
                        of_real, of_set = (self._reader(seen, label, drawn) for seen in (self.real, synthetic))
                        target = self._mean_gradient(low_state, of_real, batch)
                        found.append(self._matched(state, of_set, members[label], target))
            for pieces, distance in found:
                loss += distance
                for piece in pieces:
                    waiting.append(piece)
                    if sum(len(index) for index, _ in waiting) >= self.compute.chunk:
                        _store(synthetic, waiting)
        _store(synthetic, waiting)
        return loss

    def _matched(
        self, state: State, read: Reader, index: Tensor, target: Named
    ) -> tuple[Iterator[tuple[Tensor, Tensor]], Tensor]:
        """One class's distance to ``target``, and its gradient: indices of images and their pixels', piece by piece."""
        pieces = self.compute.pieces(index) if len(index) > self.compute.chunk else (index,)
        with torch.no_grad():
            if len(pieces) == 1:
                pixels, distance = self._match(target, *state, *read(index))
                return iter([(index, pixels)]), distance
            ours = self._mean_gradient(state, read, index)
            other, distance = grad_and_value(self.distance)(ours, target)

        def pulled(piece: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                pixels, _ = self._pull_back(other, *state, *read(piece))
            return piece, pixels * (len(piece) / len(index))

        return map(pulled, pieces), distance

    @torch.no_grad()
    def _mean_gradient(self, state: State, read: Reader, index: Tensor) -> Named:
        """Gradient of the mean cross-entropy of the images at ``index``, by parameter."""
        first, *rest = self.compute.pieces(index)
        total: Named = self._gradient(*state, *read(first))
        if rest:
            total = {name: gradient * (len(first) / len(index)) for name, gradient in total.items()}
        for piece in rest:
            for name, gradient in self._gradient(*state, *read(piece)).items():
                total[name].add_(gradient, alpha=len(piece) / len(index))
        return total

    def _reader(self, examples: Examples, label: int, drawn: Transform) -> Reader:
        """From indices of a class to images, labels and augmentation parameters, as the programs take them."""

        def read(index: Tensor) -> tuple[Tensor, ...]:
            labels = torch.full_like(index, label)
            return examples.images(index).detach().to(self.dtype), labels, *drawn.of_set(label, len(index))

        return read

    def _state(self, dtype: torch.dtype) -> State:
        """Parameters and buffers as plain tensors, laid out as the programs take them."""
        layout = self.compute.memory_format
        parameters = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        return plain(parameters, dtype, layout), plain(dict(self.network.named_buffers()), dtype, layout)

    def _to_train(self) -> MeanLoss:
        """What the network is trained by: unrounded, compiled as matches are, no more at once than they see."""
        compute = replace(self.compute, precision=torch.float32, tiled=False)  # a network on tiles needs no other
        return MeanLoss.laid_out(self.network, compute, self.real.shape, self.real.device, self.compute.chunk)

    def _train(self, synthetic: SyntheticDataset, generator: torch.Generator) -> None:
        """Train the network on the synthetic images as they are now."""
        fit(
            self.network,
            Held(synthetic.images().detach().to(self.dtype), synthetic.labels),
            epochs=self.inner_loop,
            generator=generator,
            lr=self.lr_net,
            momentum=0.0,
            weight_decay=0.0,
            batch=self.batch_train,
            drop=False,
            augment=self.augment if self.augment.ops else None,
            loss=self._loss,
        )


def _members(labels: Tensor) -> dict[int, Tensor]:
    """Indices of the images of every class that has some."""
    of_classes = labels.argsort(stable=True).split(labels.bincount().tolist())
    return {label: index for label, index in enumerate(of_classes) if len(index)}


def _store(synthetic: SyntheticDataset, waiting: list[tuple[Tensor, Tensor]]) -> None:
    """Add the gradients of these images' pixels to what is stored, all at once, and wait for others."""
    if waiting:
        index, pixels = (torch.cat(parts) for parts in zip(*waiting))
        synthetic.backward(index, pixels)
        waiting.clear()


def _in(dtype: torch.dtype, gradient: Callable[..., Named]) -> Callable[..., Named]:
    """The program ``gradient``, whose results come in this type."""

    def program(*given: Any) -> Named:
        return {name: part.to(dtype) for name, part in gradient(*given).items()}

    return program


def _pixel_gradient(gradient: Callable[..., Named], measure: Distance) -> Callable[..., tuple[Tensor, Tensor]]:
    """The program (other, parameters, buffers, images, ...) -> d measure(gradient, other) / d images, and measure."""

    def measured(images: Tensor, other: Named, parameters: Named, buffers: Named, *rest: Tensor) -> Tensor:
        return measure(gradient(parameters, buffers, images, *rest), other)

    def program(
        other: Named, parameters: Named, buffers: Named, images: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        return grad_and_value(measured)(images, other, parameters, buffers, *rest)

    return program
