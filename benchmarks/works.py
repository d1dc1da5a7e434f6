"""The pieces of work that are measured, each done the published way and ours."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import first, published
from benchmarks.measure import Way, Work
from condensate import (
    Augment,
    Compute,
    DistributionMatching,
    GradientMatching,
    ImageData,
    LowRank,
    Network,
    Objective,
    Parameterization,
    Pixels,
    Replayed,
    Streams,
    SyntheticDataset,
    TrajectoryMatching,
    build_network,
    class_major,
    fit,
    from_arrays,
    load,
    load_data,
)
from condensate.capabilities import can_compile, has_bfloat16
from condensate.compute import ComputeOptions
from condensate.examples import Held
from condensate.losses import MeanLoss, trained_at_once
from condensate.networks import forward_operations
from condensate.networks.tiled import LEAST_CHANNELS
from condensate.sgd import Sgd
from condensate.together import Together
from condensate.training import accuracy

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Bench:
    """What all pieces of work share.

    Args:
        device: Where they run.
        data: Folder of CIFAR-10; None for random images.
        quick: Whether networks are narrow, of width 32, and real batches of 64 a class, so that all ends in minutes.
    """

    device: torch.device
    data: str | None = None
    quick: bool = False

    @property
    def width(self) -> int:
        """Of the networks."""
        return 32 if self.quick else 128

    @property
    def batch_real(self) -> int:
        """Real images a class."""
        return 64 if self.quick else 256

    def streams(self) -> Streams:
        """Source of our draws."""
        return Streams(0, self.device)

    def network(self, data: ImageData) -> Network:
        """The ConvNet for images of this size, as deep as the papers have it."""
        depth = {32: 3, 64: 4, 128: 5}[data.shape[1]]
        made = build_network(
            "convnet", data.shape, len(data.classes), self.streams()("net"), width=self.width, depth=depth
        )
        return made.to(self.device)

    def images(self, shape: Shape, classes: int) -> ImageData:
        """Real images of CIFAR-10 where they are at hand and wanted, else random ones."""
        if self.data and (shape, classes) == ((3, 32, 32), 10):
            return load_data("cifar10", path=self.data).to(self.device)
        each = max(self.batch_real, 2)
        images = torch.randint(0, 256, (classes * each, *shape), dtype=torch.uint8, generator=Streams(0)("images"))
        labels = class_major(classes, each)
        return from_arrays(images, labels, images[:classes], labels[::each]).to(self.device)

    def computes(self, low: bool = True, shape: Shape = (3, 32, 32)) -> dict[str, Compute]:
        """Our ways: compiled where that is possible, also wide networks on tiles on a CPU.

        And with bfloat16 for what needs no gradient to the pixels, where any of it may be ``low``.
        """
        compiled, pixels = can_compile(self.device), shape[1] * shape[2]
        names = {"float32": ("float32", "never")}
        if compiled and self.device.type == "cpu" and self.width >= LEAST_CHANNELS:
            names["float32 on tiles"] = ("float32", "always")
        if low and has_bfloat16(self.device):
            names["bfloat16"] = ("bfloat16", "never")
        said = "" if compiled else ", eager"

        def how(precision: Any, when: Any) -> Compute:
            asked = ComputeOptions("always" if compiled else "never", precision, when)
            return asked.resolve(self.device, 0.0, pixels, tiles=2)

        return {f"ours, {name}{said}": how(*given) for name, given in names.items()}


def synthetic(
    bench: Bench, stored: Parameterization, data: ImageData, step_size: float | None = None
) -> SyntheticDataset:
    """A set for these real images, started from the published noise."""
    stored = stored.to(bench.device)
    stored.reset_(bench.streams()("start"))
    labels = class_major(len(data.classes), len(stored) // len(data.classes)).to(bench.device)
    made = SyntheticDataset(stored, labels, mean=data.mean, std=data.std, step_size=step_size)
    return made.to(bench.device)


def episode(matching: Objective, made: SyntheticDataset, lr: float = 1.0, replay: bool = True) -> Callable[[], object]:
    """An episode and its update; on a GPU recorded and replayed, as in ``condense``."""
    optimizer = Sgd(made.parameterization.parameters(), momentum=0.5)
    matched = Replayed(matching) if replay and made.labels.device.type == "cuda" else matching

    def run() -> None:
        for _ in matched.episode(made, 1):
            optimizer.step(lr)
            optimizer.zero_grad()

    return run


def episodes(
    bench: Bench,
    made: Callable[[], SyntheticDataset],
    matching: Callable[[Compute], Objective],
    lr: float = 1.0,
    **options: Any,
) -> dict[str, Way]:
    """Our ways to an episode; on a GPU the last one also as it is where nothing is compiled, or nothing replayed."""
    computes = bench.computes(**options)
    ways = {name: Way(episode(matching(how), made(), lr), precision(name)) for name, how in computes.items()}
    *_, (name, how) = computes.items()
    if bench.device.type == "cuda":
        ways[f"{name}, not compiled"] = Way(
            episode(matching(replace(how, compiled=False)), made(), lr), precision(name)
        )
        ways[f"{name}, not replayed"] = Way(episode(matching(how), made(), lr, replay=False), precision(name))
    return ways


def by_class(data: ImageData) -> list[Tensor]:
    """Normalised real images of every class, held as the released programs hold them."""
    return [data.train.images((data.train.labels == label).nonzero().flatten()) for label in range(len(data.classes))]


def of_class(made: SyntheticDataset, classes: int) -> Callable[[int], Tensor]:
    """Synthetic images of a class, with graph."""
    places = torch.arange(len(made), device=made.labels.device).view(classes, -1)
    return lambda label: made.images(places[label])


def precision(name: str) -> str:
    """The rate a way of ours is held against."""
    return "bfloat16" if "bfloat16" in name else "float32"


def dm(bench: Bench, shape: Shape, classes: int, ipc: int) -> Work:
    """A whole episode of DM over pixels."""
    data = bench.images(shape, classes)
    each = forward_operations(bench.network(data), shape)
    plain = synthetic(bench, Pixels(classes * ipc, shape), data)
    optimizer = torch.optim.SGD(plain.parameterization.parameters(), 1.0, 0.5)
    theirs = partial(
        published.dm_episode, lambda: bench.network(data), by_class(data), of_class(plain, classes), optimizer,
        Streams(0)("published"), bench.batch_real,
    )  # fmt: skip

    def matching(compute: Compute) -> Objective:
        streams, count = bench.streams(), bench.batch_real
        return DistributionMatching(data.train, bench.network(data), Augment(), streams, compute, batch_real=count)

    ways = {"published": Way(theirs)}
    ways |= episodes(bench, lambda: synthetic(bench, Pixels(classes * ipc, shape), data), matching, shape=shape)
    real, made = classes * bench.batch_real, classes * ipc
    return Work(
        f"DM step, {_named(shape, classes)}, IPC {ipc}", ways, (real + 2 * made) * each, _moved(data, real, made)
    )


def features(bench: Bench) -> Work:
    """The features of the real images of a DM episode alone, augmentation included."""
    data = bench.images((3, 32, 32), 10)
    each, count = forward_operations(bench.network(data), data.shape), bench.batch_real
    network, generator = bench.network(data).requires_grad_(False), Streams(0)("published")
    images = data.train.images(torch.arange(10 * count, device=bench.device))

    def plain() -> None:
        for label in range(10):
            op = published.OPS[int(torch.randint(6, (), generator=generator))]
            network.features(published.siamese(op, generator)(images[label * count : (label + 1) * count])).mean(0)

    ways = {"published": Way(plain)}
    for name, compute in bench.computes().items():
        matching = DistributionMatching(
            data.train, bench.network(data), Augment(), bench.streams(), compute, batch_real=count
        )
        drawn = matching.augment.draw(bench.streams()("a"), 10, (32, 32))
        ways[name] = Way(partial(matching._real_means, drawn, 0), precision(name))
    return Work("real features, CIFAR-10", ways, 10 * count * each, _moved(data, 10 * count, 0))


def dc(bench: Bench, ipc: int, augmented: bool) -> Work:
    """A fresh network matched once by DC or DSA over pixels, and its update."""
    data = bench.images((3, 32, 32), 10)
    each = forward_operations(bench.network(data), data.shape)
    plain = synthetic(bench, Pixels(10 * ipc, data.shape), data)
    optimizer = torch.optim.SGD(plain.parameterization.parameters(), 0.1, 0.5)
    theirs = partial(
        published.dc_episode, lambda: bench.network(data), by_class(data), of_class(plain, 10), optimizer,
        Streams(0)("published"), bench.batch_real, augmented,
    )  # fmt: skip

    def matching(compute: Compute) -> Objective:
        return GradientMatching(
            data.train, bench.network(data), Augment() if augmented else Augment([]), bench.streams(), compute,
            siamese=augmented, batch_real=bench.batch_real,
        )  # fmt: skip

    ways = {"published": Way(theirs)}
    ways |= episodes(bench, lambda: synthetic(bench, Pixels(10 * ipc, data.shape), data), matching, 0.1)
    real, made = 10 * bench.batch_real, 10 * ipc
    named = f"{'DSA' if augmented else 'DC'} matching step, CIFAR-10, IPC {ipc}"
    return Work(named, ways, (3 * real + 7 * made) * each, _moved(data, real, made))


def between(bench: Bench, ipc: int, epochs: int) -> Work:
    """A network trained on the synthetic images between two matches of DSA; 50 epochs are published at IPC 10."""
    data = bench.images((3, 32, 32), 10)
    made = synthetic(bench, Pixels(10 * ipc, data.shape), data)
    images, plain = made.images().detach(), bench.network(data)
    theirs = partial(
        published.train, plain, images, made.labels, epochs, Streams(0)("published"),
        lr=0.01, momentum=0.0, weight_decay=0.0,
    )  # fmt: skip

    def ours(compute: Compute) -> Way:
        matching = GradientMatching(
            data.train, bench.network(data), Augment(), bench.streams(), compute, outer_loop=2, inner_loop=epochs
        )
        return Way(partial(matching._train, made, bench.streams()("inner")))

    ways = {"published": Way(theirs), "ours, float32, not compiled": ours(Compute())}
    ways |= {name: ours(compute) for name, compute in bench.computes(low=False).items() if compute.compiled}
    operations = 3.0 * len(images) * epochs * forward_operations(plain, data.shape)
    return Work(f"DSA's network trained between matches, IPC {ipc}, {epochs} epochs", ways, operations, images.nbytes)


class Straight:
    """Experts that go a straight way from one network to another: matching them costs what matching real ones does.

    Args:
        ends: The two networks.
        epochs: Of an expert, each a tenth of the way.
    """

    def __init__(self, ends: Sequence[Network], epochs: int) -> None:
        self.epochs = epochs
        self.ends = [{name: value.detach().clone() for name, value in end.named_parameters()} for end in ends]

    def __len__(self) -> int:
        return 1

    def parameters(self, expert: int, epoch: int) -> dict[str, Tensor]:
        """A point of the way."""
        return {n: torch.lerp(p, self.ends[1][n], 0.1 * epoch) for n, p in self.ends[0].items()}


def mtt(bench: Bench, ipc: int, steps: int, batch: int | None = None) -> Work:
    """An iteration of LoMTT, rank 2, eight images in the storage of one."""
    shape, images = (3, 32, 32), 80 * ipc
    data = bench.images(shape, 10)
    each = forward_operations(bench.network(data), shape)
    ends = [bench.network(data) for _ in range(2)]
    for number, end in enumerate(ends):
        end.reset_(bench.streams()("expert", number))
    experts = Straight(ends, epochs=2)

    def made() -> SyntheticDataset:
        return synthetic(bench, LowRank(images, shape, rank=2), data, step_size=0.01)

    def matching(compute: Compute) -> Objective:
        return TrajectoryMatching(
            experts, bench.network(data), Augment(), bench.streams(), compute,
            syn_steps=steps, max_start_epoch=1, batch_syn=batch,
        )  # fmt: skip

    plain, network = made(), bench.network(data)
    assert plain.step_size is not None
    first, last = (experts.parameters(0, epoch) for epoch in (0, 2))
    optimizer = torch.optim.SGD([*plain.parameterization.parameters(), plain.step_size], 1e-3, 0.5)
    theirs = partial(
        published.mtt_episode, network, first, last, plain.images, plain.labels, plain.step_size, optimizer,
        Streams(0)("published"), steps, batch,
    )  # fmt: skip
    ways = {"published": Way(theirs)}
    ways |= episodes(bench, made, matching, 1e-3, low=False)
    if steps <= 10 and bench.device.type == "cpu":
        ways["ours, not compiled"] = Way(episode(matching(Compute()), made(), 1e-3))
    moved = 2.0 * steps * sum(p.numel() * 4 for p in network.parameters())
    named = f"MTT iteration, CIFAR-10, IPC {ipc}, {steps} steps of {batch or images} of {images} images"
    return Work(named, ways, 9 * steps * (batch or images) * each, moved)


def evaluation(bench: Bench, networks: int) -> Work:
    """Networks trained from scratch on 80 images."""
    # On a GPU of as many as a network is trained for, in the first of which a step is recorded.
    asked, few, many, ran = 2, *((2, 2, networks) if bench.device.type == "cpu" else (4, 400, max(1, networks // 10)))
    data = bench.images((3, 32, 32), 10)
    each = forward_operations(bench.network(data), data.shape)
    images = torch.randn(80, *data.shape, generator=Streams(0)("set")).to(bench.device)
    labels = class_major(10, 8).to(bench.device)
    held, streams, generator = Held(images, labels), bench.streams(), Streams(0)("published")

    def plain() -> None:
        for _ in range(networks):
            published.train(bench.network(data), images, labels, few, generator)

    def one_by_one(compute: Compute) -> Way:
        network = bench.network(data).to(memory_format=compute.memory_format)  # type: ignore[call-overload]
        loss = MeanLoss(network, compute, trained_at_once(data.shape, compute, bench.device))
        epochs = min(many, 200)

        def run() -> None:
            for number in range(ran):
                own = streams("evaluate", number)
                network.reset_(own)
                fit(network, held, epochs=epochs, generator=own, augment=Augment(), loss=loss)

        return Way(run, precision(str(compute.precision)), epochs // asked * ran / networks)

    def together(compute: Compute) -> Way:
        layout = compute.memory_format if bench.device.type == "cuda" else None
        stack = Together([bench.network(data) for _ in range(networks)], layout)
        loss = MeanLoss(stack, compute)
        own = [streams("evaluate", number) for number in range(networks)]
        run = partial(fit, stack, held, epochs=many, generator=own, augment=Augment(), loss=loss)
        return Way(run, precision(str(compute.precision)), many // asked)

    ways = {"published": Way(plain, units=few // asked), "ours, float32, not compiled": one_by_one(Compute())}
    ways |= {name: one_by_one(compute) for name, compute in bench.computes().items() if compute.compiled}
    ways["ours, all together, not compiled"] = together(Compute())
    if bench.device.type == "cuda":
        ways["ours, all together"] = together(Compute(compiled=True))
        ways["ours, all together, bfloat16"] = together(Compute(compiled=True, precision=torch.bfloat16))
    moved = 80.0 * 4 * images[0].numel() * networks * asked
    named = f"{networks} networks on 80 images, {asked} epochs each"
    return Work(named, ways, 3.0 * 80 * networks * asked * each, moved)


def scoring(bench: Bench, count: int) -> Work:
    """Some thousand test images through a network; there are 10,000."""
    data = bench.images((3, 32, 32), 10)
    network, part = bench.network(data), data.train.subset(torch.arange(count, device=bench.device) % len(data.train))
    images, each = part.images(), forward_operations(bench.network(data), data.shape)
    held = Held(images, part.labels)
    ways = {
        "published": Way(partial(published.score, network, images, part.labels)),
        "ours": Way(partial(accuracy, network, held)),
    }
    return Work(f"{count:,} test images through a network", ways, count * each, float(images.nbytes))


def experts(bench: Bench, count: int) -> Work:
    """An epoch of an expert on some thousand real images; a whole one has 50,000."""
    data = bench.images((3, 32, 32), 10)
    index = torch.arange(min(count, len(data.train)), device=bench.device)
    part, epochs = data.train.subset(index), 1 if bench.device.type == "cpu" else 5
    images, generator = part.images(), Streams(0)("published")
    each = forward_operations(bench.network(data), data.shape)
    settings: dict[str, Any] = {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0}

    def plain() -> None:
        published.train(bench.network(data), images, part.labels, 1, generator, **settings)

    def ours(compute: Compute) -> Way:
        network = bench.network(data).to(memory_format=compute.memory_format)  # type: ignore[call-overload]
        loss, own = (
            MeanLoss(network, compute, trained_at_once(data.shape, compute, bench.device)),
            bench.streams()("expert"),
        )
        run = partial(fit, network, part, epochs=epochs, generator=own, augment=Augment(), loss=loss, **settings)
        return Way(run, units=epochs)

    ways = {"published": Way(plain)} | {name: ours(how) for name, how in bench.computes(low=False).items()}
    return Work(f"expert, an epoch of {len(part)} images", ways, 3.0 * len(part) * each, float(images.nbytes))


def artefact(bench: Bench, ipc: int) -> Work:
    """A saved set read and decoded: all images as the released programs save them, and the factors of as many."""
    shape, folder = (3, 32, 32), Path(tempfile.mkdtemp())
    made = synthetic(bench, LowRank(80 * ipc, shape, rank=2), bench.images(shape, 10))
    made.save(folder / "set.safetensors")
    torch.save([made.images().detach().cpu(), made.labels.cpu()], folder / "set.pt")

    def theirs() -> Tensor:
        images: Tensor = torch.load(folder / "set.pt", weights_only=True)[0]
        return images.to(bench.device)

    ways = {"published": Way(theirs), "ours": Way(lambda: load(folder / "set.safetensors").to(bench.device).images())}
    stored = (folder / "set.safetensors").stat().st_size
    named = f"set of {80 * ipc} images read and decoded"
    note = f"on disk {(folder / 'set.pt').stat().st_size} bytes as published, {stored} ours"
    return Work(named, ways, moved=stored + 4.0 * 80 * ipc * 3072, note=note)


def first_episode(bench: Bench, imports: bool) -> Work:
    """To where the first episode begins, on CIFAR-10, the decoded cache warm: from nothing, or with all imported."""
    named = "start to first episode, CIFAR-10" + ("" if imports else ", PyTorch and the programs imported")
    if not bench.data:
        return Work(named, {}, note="needs --data")
    given = {
        "published": (first.published, _as_arrays(bench)),
        "published, images in files": (first.published, bench.data),
        "ours": (first.command if imports else first.ours, bench.data),
    }

    if bench.quick:
        del given["published, images in files"]

    def started(name: str) -> str:
        work, folder = given[name]
        command = [sys.executable, "-m", "benchmarks.first", work.__name__, folder, str(bench.device)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    if not imports:
        ways = {name: Way(partial(work, folder, str(bench.device))) for name, (work, folder) in given.items()}
        return Work(named, ways)
    line = next(line for line in started("ours").splitlines() if line.startswith(first.TOOK))
    took: dict[str, float] = json.loads(line.removeprefix(first.TOOK))
    parts = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in took.items())
    note = f"ours, in one start of {sum(took.values()):.2f} s: {parts}"
    return Work(named, {name: Way(partial(started, name)) for name in given}, note=note)


def _as_arrays(bench: Bench) -> str:
    """A folder with CIFAR-10's training images as torchvision holds them: arrays of bytes, decoded long before."""
    folder, train = Path(tempfile.mkdtemp()), load_data("cifar10", path=bench.data).train
    np.save(folder / "images.npy", train.raw.permute(0, 2, 3, 1).contiguous().numpy())
    np.save(folder / "labels.npy", train.labels.numpy())
    return str(folder)


def _named(shape: Shape, classes: int) -> str:
    return {(32, 10): "CIFAR-10", (32, 100): "CIFAR-100"}.get((shape[1], classes), f"{shape[1]}x{shape[2]}")


def _moved(data: ImageData, real: int, made: int) -> float:
    """Bytes read and written at least once: real images as bytes, synthetic ones with gradient and momentum."""
    pixels = torch.Size(data.shape).numel()
    return float(real * pixels + 5 * 4 * made * pixels)


WORKS: dict[str, Callable[[Bench], Work]] = {
    "features": features,
    **{f"dm-ipc{ipc}": partial(dm, shape=(3, 32, 32), classes=10, ipc=ipc) for ipc in (1, 10, 50)},
    **{f"dc-ipc{ipc}": partial(dc, ipc=ipc, augmented=False) for ipc in (1, 10, 50)},
    **{f"dsa-ipc{ipc}": partial(dc, ipc=ipc, augmented=True) for ipc in (1, 10, 50)},
    "mtt-ipc1": partial(mtt, ipc=1, steps=10),
    "mtt-ipc10": partial(mtt, ipc=10, steps=10, batch=80),
    "mtt-ipc50": partial(mtt, ipc=50, steps=10, batch=80),
    "mtt-50-steps": partial(mtt, ipc=1, steps=50),
    "dm-cifar100": partial(dm, shape=(3, 32, 32), classes=100, ipc=1),
    "dm-64": partial(dm, shape=(3, 64, 64), classes=10, ipc=1),
    "dm-128": partial(dm, shape=(3, 128, 128), classes=10, ipc=1),
    "evaluation": partial(evaluation, networks=20),
    "evaluation-2": partial(evaluation, networks=2),
    "between": partial(between, ipc=10, epochs=5),
    "scoring": partial(scoring, count=2048),
    "experts": partial(experts, count=5120),
    "start": partial(first_episode, imports=True),
    "set-up": partial(first_episode, imports=False),
    "artefact": partial(artefact, ipc=50),
}
QUICK = ("dm-ipc1", "scoring", "artefact")
