"""The published way against ours, in one run on one machine: python -m benchmarks [--data FOLDER] [--device cuda].

Prints one table and, with --json, writes it. Times are medians of interleaved repeats.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import published
from condensate import Augment, Compute, Streams, SyntheticDataset, build_network, from_arrays, load_data
from condensate.assemble import objective, start
from condensate.compute import has_bfloat16
from condensate.console import show_table
from condensate.data import ImageData
from condensate.objectives import DistributionMatching, GradientMatching, Objective
from condensate.recipe import resolve
from condensate.runs import environment

WAYS = {
    "ours, float32": Compute(compiled=True, precision=torch.float32),
    "ours, bfloat16": Compute(compiled=True, precision=torch.bfloat16),
}


@dataclass(frozen=True)
class Row:
    """One way of doing one piece of work.

    Args:
        work: What is done.
        way: How.
        seconds: Of each repeat.
        first: Seconds of the first time, compilation included.
        operations: Floating-point operations the work needs.
    """

    work: str
    way: str
    seconds: list[float]
    first: float
    operations: float


def cifar_like(data: str | None, device: torch.device) -> ImageData:
    """CIFAR-10 from a local folder, else random images of its shape."""
    if data:
        return load_data("cifar10", path=data).to(device)
    images = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8, generator=Streams(0)("images"))
    labels = torch.arange(10).repeat(500)
    return from_arrays(images, labels, images[:10], labels[:10]).to(device)


def interleaved(work: str, ways: dict[str, Callable[[], object]], operations: float, repeats: int) -> list[Row]:
    """Time the ways in turn, after one time each to compile and warm up."""

    def timed(way: Callable[[], object]) -> float:
        began = time.perf_counter()
        way()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    first = {name: timed(way) for name, way in ways.items()}
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    return [Row(work, name, seconds[name], first[name], operations) for name in ways]


def dm_rows(method: str, data: ImageData, repeats: int) -> list[Row]:
    """A whole episode of DM or LoDM on CIFAR-10 at IPC 1, as the recipe has it."""
    recipe = resolve(f"cifar10-{method}-ipc1")
    device = data.train.raw.device
    streams = Streams(0, device)
    generator = Streams(0)("published")
    ways: dict[str, Callable[[], object]] = {}

    plain = start(recipe, data, streams)
    optimizer = torch.optim.SGD(plain.parameters(), 1.0, 0.5)
    real = [data.train.images((data.train.labels == label).nonzero().flatten()) for label in range(10)]
    ways["published"] = lambda: published.dm_episode(
        lambda: build_network("convnet", data.shape, 10, streams("net")),
        real,
        lambda label: plain.images(torch.arange(len(plain), device=device).view(10, -1)[label]),
        optimizer,
        generator,
    )
    for name, compute in WAYS.items():
        if compute.precision == torch.float32 or has_bfloat16(device):
            ways[name] = episode(objective(recipe, data, compute, streams), start(recipe, data, streams))
    images = 2560 + 3 * len(plain)
    return interleaved(f"{method} episode, IPC 1", ways, images * operations_per_image(data), repeats)


def episode(matching: object, synthetic: SyntheticDataset) -> Callable[[], object]:
    """An episode and its update."""
    assert isinstance(matching, Objective)
    optimizer = torch.optim.SGD(synthetic.parameters(), 1.0, 0.5)

    def run() -> None:
        for _ in matching.episode(synthetic, 1):
            optimizer.step()
            optimizer.zero_grad()

    return run


def dc_rows(data: ImageData, repeats: int) -> list[Row]:
    """A fresh network matched once by DC on CIFAR-10 at IPC 1, pixels, and its update."""
    recipe = resolve("cifar10-dm-ipc1")
    device = data.train.raw.device
    streams = Streams(0, device)
    generator = Streams(0)("published")
    ways: dict[str, Callable[[], object]] = {}

    plain = start(recipe, data, streams)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, 0.5)
    real = [data.train.images((data.train.labels == label).nonzero().flatten()) for label in range(10)]
    ways["published"] = lambda: published.dc_episode(
        lambda: build_network("convnet", data.shape, 10, streams("net")),
        real,
        lambda label: plain.images(torch.arange(len(plain), device=device).view(10, -1)[label]),
        optimizer,
        generator,
    )
    for name, compute in WAYS.items():
        if compute.precision == torch.float32 or has_bfloat16(device):
            network = build_network("convnet", data.shape, 10, streams("net"))
            matching = GradientMatching(data.train, network, Augment([]), streams, compute, siamese=False)
            ways[name] = episode(matching, start(recipe, data, streams))
    images = 3 * 2560 + 7 * len(plain)
    return interleaved("dc matching step, IPC 1", ways, images * operations_per_image(data), repeats)


def feature_rows(data: ImageData, repeats: int) -> list[Row]:
    """The features of 2,560 real images alone, augmentation included, without gradient."""
    device, streams = data.train.raw.device, Streams(0, data.train.raw.device)
    network = build_network("convnet", data.shape, 10, streams("net")).requires_grad_(False)
    images = data.train.images(torch.arange(2560, device=device))
    generator = Streams(0)("published")

    def plain() -> None:
        for label in range(10):
            op = published.OPS[int(torch.randint(6, (), generator=generator))]
            network.features(published.siamese(op, generator)(images[label * 256 : (label + 1) * 256])).mean(0)

    ways: dict[str, Callable[[], object]] = {"published": plain}
    recipe = resolve("cifar10-dm-ipc1")
    for name, compute in WAYS.items():
        if compute.precision == torch.float32 or has_bfloat16(device):
            matching = objective(recipe, data, compute, streams)
            assert isinstance(matching, DistributionMatching)
            drawn = matching.augment.draw(streams("a"), 10, (32, 32))
            ways[name] = lambda matching=matching, drawn=drawn: matching._real_means(drawn, 0)  # type: ignore[misc]
    return interleaved("real features", ways, 2560 * operations_per_image(data), repeats)


def operations_per_image(data: ImageData) -> float:
    """Floating-point operations of one image's features."""
    network = build_network("convnet", data.shape, 10, Streams(0)("net"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.features(torch.zeros(2, *data.shape))
    return counter.get_total_flops() / 2


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the best large matrix product seen."""
    rates = []
    for side in (1024, 2048, 4096):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out: Tensor = a @ b
        for _ in range(4):
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize()
            rates.append(2 * side**3 / (time.perf_counter() - began))
    return max(rates)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", help="folder with CIFAR-10's train.parquet and test.parquet; absent: random images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--only", nargs="+", choices=["features", "dm", "lodm", "dc"], help="absent: all")
    parser.add_argument("--json", type=Path, help="write the table here, too")
    options = parser.parse_args()
    device, repeats = torch.device(options.device), 3 if options.quick else options.repeats
    data = cifar_like(options.data, device)
    rates = {"float32": matrix_rate(torch.float32, device)}
    if has_bfloat16(device):
        rates["bfloat16"] = matrix_rate(torch.bfloat16, device)
    works: dict[str, Callable[[], list[Row]]] = {
        "features": lambda: feature_rows(data, repeats),
        "dm": lambda: dm_rows("dm", data, repeats),
        "lodm": lambda: dm_rows("lodm", data, repeats),
        "dc": lambda: dc_rows(data, repeats),
    }
    rows = []
    for name in options.only or works:
        torch._dynamo.reset()
        rows += works[name]()
    shown, written = [], []
    for row in rows:
        base = next(r for r in rows if r.work == row.work and r.way == "published")
        rate = rates["bfloat16" if "bfloat16" in row.way else "float32"]
        faster, share = median(base.seconds) / median(row.seconds), row.operations / median(row.seconds) / rate
        low, high = min(row.seconds), max(row.seconds)
        spread, cells = f"{low:.3f} .. {high:.3f}", [f"{faster:.2f}", f"{100 * share:.0f} %", f"{row.first:.0f}"]
        shown.append([row.work, row.way, f"{median(row.seconds):.3f}", spread, *cells])
        written.append(row.__dict__ | {"median": median(row.seconds), "times_faster": faster, "share_of_rate": share})
    columns = ["work", "way", "seconds", "min .. max", "times faster", "of matrix rate", "first"]
    show_table("CIFAR-10, ConvNet-3 of width 128, 256 real images a class", columns, shown)
    for name, rate in rates.items():
        print(f"matrix products in {name}: {rate / 1e9:.0f} GFLOP/s")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"rows": written, "matrix_rates": rates, "data": options.data is not None, **environment(device)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
