"""How work is timed, what memory it takes, and what the machine could do at best."""

import ctypes
import gc
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from condensate.allocation import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory
from condensate.compute import like_convolutions

Run = Callable[[], object]


@dataclass(frozen=True)
class Way:
    """One way of doing a piece of work.

    Args:
        run: Does it once.
        precision: In which most of it is multiplied: the rate it is held against.
        units: How often it does the work in one run; its seconds are those of one.
        look: Finds its ``peak``, or its ``shares`` of so many seconds, where another process runs it.
    """

    run: Run
    precision: str = "float32"
    units: float = 1
    look: Callable[..., Any] | None = None

    def peak(self, device: torch.device) -> int | None:
        """See ``peak_bytes``."""
        return self.look("peak") if self.look else peak_bytes(self.run, device)

    def shares(self, device: torch.device, usual: float) -> dict[str, float]:
        """See ``shares``."""
        return self.look("shares", usual) if self.look else shares(self.run, device, usual)


@dataclass(frozen=True)
class Work:
    """A piece of work and the ways to do it; the first is what the others are compared with.

    Args:
        name: What is done.
        ways: By name.
        operations: Floating-point operations it needs.
        moved: Bytes it must read and write at least once: images, what is stored, parameters.
        note: What a reader must know of it.
    """

    name: str
    ways: dict[str, Way]
    operations: float = 0.0
    moved: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What a way of doing a piece of work took.

    Args:
        work: What was done.
        way: How.
        seconds: Of each repeat.
        first: Seconds of the first time, compilation included.
        precision: See ``Way``.
        operations: See ``Work``.
        moved: See ``Work``.
        memory: Bytes held at the peak beyond what was held before; None where the system does not tell.
        note: See ``Work``.
        profile: Share of the time by what was computed, see ``shares``; None where nobody asked.
    """

    work: str
    way: str
    seconds: list[float] = field(repr=False)
    first: float
    precision: str
    operations: float
    moved: float
    memory: int | None
    note: str = ""
    profile: dict[str, float] | None = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return median(self.seconds)


def warm(work: Work, device: torch.device, patience: float) -> dict[str, float]:
    """Do the work all ways, so that everything is compiled and, on a GPU, recorded; seconds of the first time each.

    Args:
        work: What to do.
        device: Where it runs.
        patience: Seconds; work that takes longer warms up in one time.
    """
    first = {name: _seconds(way.run, device) for name, way in work.ways.items()}
    if device.type == "cuda":
        for way in work.ways.values():
            if _seconds(way.run, device) < 1:  # else it has warmed up on the way
                for _ in range(3):  # an episode is recorded in the third time
                    way.run()
    elif sum(first.values()) < patience:
        for way in work.ways.values():
            way.run()
    return first


def measure(
    work: Work, first: dict[str, float], repeats: int, device: torch.device, patience: float, profiled: bool = False
) -> list[Measured]:
    """Time the ways in turn, then look at their memory.

    Args:
        work: What to measure, warmed up.
        first: What that took the first time.
        repeats: Of every way; at least three are made, fewer than ``repeats`` once ``patience`` runs out.
        device: Where it runs.
        patience: Seconds for all repeats.
        profiled: Whether to look at what their time goes to, in one more time each.
    """

    def timed(run: Run, times: int) -> float:
        def behind() -> None:
            for _ in range(times):
                run()

        return _seconds(behind, device) / times

    times = dict.fromkeys(work.ways, 1)
    if device.type == "cuda":
        for name, way in work.ways.items():  # one behind the other, as they are in a run
            times[name] = max(1, min(50, round(0.2 / timed(way.run, 1))))
    seconds: dict[str, list[float]] = {name: [] for name in work.ways}
    began = time.perf_counter()
    for repeat in range(repeats):
        if repeat >= 3 and time.perf_counter() - began > patience:
            break
        for name, way in work.ways.items():
            seconds[name].append(timed(way.run, times[name]) / way.units)
    # Before the profiler, whose records lie between what the work allocates after it.
    memory = {name: way.peak(device) for name, way in work.ways.items()}
    looked = {
        name: way.shares(device, median(seconds[name]) * way.units)
        for name, way in work.ways.items()
        if profiled and median(seconds[name]) * way.units < PROFILED[device.type]
    }
    return [
        Measured(
            work.name, name, seconds[name], first[name], way.precision, work.operations, work.moved, memory[name],
            work.note, looked.get(name),
        )
        for name, way in work.ways.items()
    ]  # fmt: skip


# Of work of fewer seconds; what a GPU does in more is so many kernels that to list them takes minutes.
PROFILED = {"cpu": 1e9, "cuda": 0.5}

# What the time of a way goes to, by the names of operators and kernels; the first that fits.
KINDS = {
    "fused layers": re.compile("cpp_fused|triton"),
    "convolutions, products": re.compile("conv|gemm|mm$|mm_out|linear|cutlass|xmma|wgrad|dgrad|nvjet"),
    "single layers": re.compile(""),
}
AROUND = "around them"


def shares(run: Run, device: torch.device, usual: float = 0.0) -> dict[str, float]:
    """Share of the time of a way by kind of computation; what is left is the program around it.

    Fused layers are what a compiled program makes of all between convolutions; on the CPU the compiler is to be told
    beforehand that they shall be seen, see ``show_fused``. On a GPU, where looking takes longer than the work, it is
    shares of the ``usual`` seconds, or of those of all kernels where they ran side by side.
    """
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        whole = _seconds(run, device)
    found = dict.fromkeys(KINDS, 0.0)
    for event in seen.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        if cuda or re.search("^(aten|mkldnn|mkl)::|cpp_fused", event.key):
            found[next(name for name, pattern in KINDS.items() if pattern.search(event.key))] += spent / 1e6
    whole = max(usual, sum(found.values())) if cuda else whole
    found = {kind: spent / whole for kind, spent in found.items()}
    return found | {AROUND: max(0.0, 1 - sum(found.values()))}


def show_fused() -> None:
    """Let the kernels of compiled programs be seen by the profiler, of all that are compiled from here on."""
    from torch._inductor import config

    config.cpp.enable_kernel_profile = True


def peak_bytes(run: Run, device: torch.device, kept: bool = False) -> int | None:
    """The most memory held while a way runs, beyond what is held before: of tensors on CUDA, else of the process.

    Of a process it is what is held where freed memory goes back at once, or is ``kept`` as by our programs.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    forget_peak(kept)
    before = resident("VmRSS")
    run()
    found = max(0, resident("VmHWM") - before)
    if not kept:
        leave_memory_as_usual()
    return found


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def forget_peak(kept: bool = False) -> None:
    """Give what is free back to the system and forget the peak so far, of this process.

    From here on freed memory goes back at once, or is ``kept`` as by our programs.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(setting, 65536)
        library.malloc_trim(0)
    if kept:
        keep_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")


def leave_memory_as_usual() -> None:
    """Undo ``forget_peak``: blocks up to the size that the C library comes to by itself are kept."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the best large matrix product seen, float32 as in convolutions (on CUDA TF32)."""
    rates = []
    with like_convolutions():
        for side in (1024, 2048, 4096) if device.type == "cpu" else (4096, 8192):
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            out: Tensor = a @ b
            for _ in range(4 if side < 4096 or device.type == "cuda" else 2):
                rates.append(2 * side**3 / _seconds(partial(torch.mm, a, b, out=out), device))
    return max(rates)


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of the best large copy seen."""
    source = torch.ones(2**26, device=device)  # 256 MiB, past all caches
    target = torch.empty_like(source)
    target.copy_(source)
    return max(2 * source.nbytes / _seconds(lambda: target.copy_(source), device) for _ in range(5))


def _seconds(run: Run, device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
