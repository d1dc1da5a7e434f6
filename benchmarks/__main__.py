"""The published way against ours, in one run on one machine: python -m benchmarks [--data FOLDER] [--device cuda].

Prints one table and, with --json, writes it. Times are medians of interleaved repeats.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import published
from condensate import Augment, Compute, Streams, SyntheticDataset, build_network, from_arrays, load_data
from condensate.assemble import objective, start
from condensate.compute import has_bfloat16
from condensate.console import show_table, size
from condensate.data import ImageData
from condensate.objectives import DistributionMatching, GradientMatching, Objective, TrajectoryMatching
from condensate.records import environment
from condensate.sheets import resolve

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
        memory: Bytes of its peak beyond what was held before, where that was measured.
    """

    work: str
    way: str
    seconds: list[float]
    first: float
    operations: float
    memory: int | None = None


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
    if not repeats:
        return [Row(work, name, [], first[name], operations, peak_bytes(way)) for name, way in ways.items()]
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    return [Row(work, name, seconds[name], first[name], operations) for name in ways]


def peak_bytes(way: Callable[[], object]) -> int:
    """The most memory held while a way runs, beyond what is held before: of tensors on CUDA, else of the process."""
    gc.collect()
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        return torch.cuda.max_memory_allocated() - before
    status = Path("/proc/self/status")

    def read(key: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(key))
        return 1024 * int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = read("VmRSS")
    way()
    return read("VmHWM") - before


def memory_of(name: str, given: list[str]) -> dict[str, int]:
    """Peak bytes by work and way, measured in a process that gives freed memory back at once."""
    surroundings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks", *given, "--only", name, "--measure-memory"]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


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


def episode(matching: object, synthetic: SyntheticDataset, lr: float = 1.0) -> Callable[[], object]:
    """An episode and its update."""
    assert isinstance(matching, Objective)
    optimizer = torch.optim.SGD(synthetic.parameters(), lr, 0.5)

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


class Straight:
    """Experts that went a straight way from one initialisation to another: their cost is that of any."""

    epochs = 2

    def __init__(self, data: ImageData, streams: Streams) -> None:
        networks = [build_network("convnet", data.shape, 10, streams("expert", end)) for end in (0, 1)]
        self.ends = [{n: p.detach().clone() for n, p in network.named_parameters()} for network in networks]

    def __len__(self) -> int:
        return 1

    def parameters(self, expert: int, epoch: int) -> dict[str, Tensor]:
        """A point of the way."""
        return {n: torch.lerp(p, self.ends[1][n], 0.1 * epoch) for n, p in self.ends[0].items()}


def mtt_ways(data: ImageData, steps: int) -> dict[str, Callable[[], object]]:
    """An iteration of LoMTT on CIFAR-10 at IPC 1, rank 2: 80 images, all of them in every step."""
    recipe = resolve("cifar10-lodm-ipc1")
    device = data.train.raw.device
    streams, generator = Streams(0, device), Streams(0)("published")
    experts = Straight(data, streams)

    def made() -> SyntheticDataset:
        synthetic = start(recipe, data, streams)
        synthetic.step_size = torch.nn.Parameter(torch.tensor(0.01, device=device))
        return synthetic

    def ours(compute: Compute) -> Callable[[], object]:
        network = build_network("convnet", data.shape, 10, streams("net"))
        matching = TrajectoryMatching(experts, network, Augment(), streams, compute, syn_steps=steps, max_start_epoch=1)
        return episode(matching, made(), 1e-3)

    plain = made()
    assert plain.step_size is not None
    step_size = plain.step_size
    optimizer = torch.optim.SGD(plain.parameters(), 1e-3, 0.5)
    network = build_network("convnet", data.shape, 10, streams("net"))
    first, last = ({n: p.to(device) for n, p in experts.parameters(0, epoch).items()} for epoch in (0, 2))
    return {
        "published": lambda: published.mtt_episode(
            network, first, last, plain.images, plain.labels, step_size, optimizer, generator, steps
        ),
        "ours, float32": ours(WAYS["ours, float32"]),
        "ours, not compiled": ours(Compute()),
    }


def mtt_rows(data: ImageData, repeats: int) -> list[Row]:
    """An iteration of ten steps."""
    operations = 12 * 10 * 80 * operations_per_image(data)
    return interleaved("mtt iteration, 10 steps", mtt_ways(data, 10), operations, repeats)


def mtt_memory(data: ImageData) -> dict[str, int]:
    """Peak bytes of an iteration by its steps, both ways eager; the graph of 50 steps is left out, 20 GiB or so."""
    found = {}
    for steps in (5, 10, 20, 50):
        for name, way in mtt_ways(data, steps).items():
            if name == "ours, not compiled" or (name == "published" and steps <= 20):
                found[f"mtt iteration, {steps} steps/{name}"] = peak_bytes(way)
    return found


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


WORKS = ["features", "dm", "lodm", "dc", "mtt"]


def works(data: ImageData, repeats: int) -> dict[str, Callable[[], list[Row]]]:
    """The pieces of work by name."""
    return {
        "features": lambda: feature_rows(data, repeats),
        "dm": lambda: dm_rows("dm", data, repeats),
        "lodm": lambda: dm_rows("lodm", data, repeats),
        "dc": lambda: dc_rows(data, repeats),
        "mtt": lambda: mtt_rows(data, repeats),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", help="folder with CIFAR-10's train.parquet and test.parquet; absent: random images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--only", nargs="+", choices=WORKS, help="absent: all")
    parser.add_argument("--memory", action="store_true", help="peak memory of every way too, in processes of their own")
    parser.add_argument("--measure-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the table here, too")
    options = parser.parse_args()
    device, repeats = torch.device(options.device), 3 if options.quick else options.repeats
    data = cifar_like(options.data, device)
    if options.measure_memory:
        name = options.only[0]
        peaks = {f"{row.work}/{row.way}": row.memory for row in works(data, 0)[name]()}
        print(json.dumps(peaks | (mtt_memory(data) if name == "mtt" else {})))
        return
    rates = {"float32": matrix_rate(torch.float32, device)}
    if has_bfloat16(device):
        rates["bfloat16"] = matrix_rate(torch.bfloat16, device)
    rows: list[Row] = []
    memory: dict[str, int] = {}
    given = ["--device", options.device, *(["--data", options.data] if options.data else [])]
    for name in options.only or WORKS:
        torch._dynamo.reset()
        rows += works(data, repeats)[name]() if repeats else []
        if options.memory:
            memory |= memory_of(name, given)
    rows = [replace(row, memory=memory.get(f"{row.work}/{row.way}")) for row in rows]
    shown, written = [], []
    for row in rows:
        base = next((r for r in rows if r.work == row.work and r.way == "published"), None)
        rate = rates["bfloat16" if "bfloat16" in row.way else "float32"]
        faster = median(base.seconds) / median(row.seconds) if base else None
        share = row.operations / median(row.seconds) / rate
        low, high = min(row.seconds), max(row.seconds)
        spread, cells = (
            f"{low:.3f} .. {high:.3f}",
            ["" if faster is None else f"{faster:.2f}", f"{100 * share:.0f} %", f"{row.first:.0f}"],
        )
        cells.append("" if row.memory is None else size(row.memory))
        shown.append([row.work, row.way, f"{median(row.seconds):.3f}", spread, *cells])
        written.append(row.__dict__ | {"median": median(row.seconds), "times_faster": faster, "share_of_rate": share})
    columns = ["work", "way", "seconds", "min .. max", "faster", "of rate", "first", "memory"]
    show_table("CIFAR-10, ConvNet-3 of width 128, 256 real images a class", columns, shown)
    for name, rate in rates.items():
        print(f"matrix products in {name}: {rate / 1e9:.0f} GFLOP/s")
    for name, peak in memory.items():
        print(f"peak memory, {name}: {size(peak)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "rows": written,
            "peak_memory": memory,
            "matrix_rates": rates,
            "data": options.data is not None,
            **environment(device),
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
