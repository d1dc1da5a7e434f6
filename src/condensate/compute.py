"""Which programs run: compiled or not, and in which precision what needs no gradient is computed."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from condensate.errors import UserError, unknown

# Compiling a step takes half a minute to a minute and halves it; below this many operations in the whole run it does
# not pay: two cores do about 100 GFLOP/s eagerly (python -m benchmarks prints both). On an H200 it takes 40 to 70
# seconds and spares 30 in 1e15 operations of DM or DSA.
WORTH_COMPILING = {"cpu": 1e13, "cuda": 2e15}
# Of each layer that goes on tiles, which compiles up to half a minute longer so and takes two thirds of the time where
# this was measured: on a CPU with AVX2 and no AVX-512.
WORTH_TILING = 1e13

# Images that go through a network at once: on a CPU few, on a GPU many, up to this many pixels of them (4,096 images of
# 32x32), which keep it busy and take a few gigabytes. Fewer yet are best where a CPU's caches hold their feature maps,
# which is by the bytes of one map of each: 32 images of 32x32 in float32, 64 in bfloat16.
CHUNK = 64
PIXELS_ON_GPU = 4096 * 32 * 32
CACHED_BYTES = 128 * 1024

LANES = 8  # of a GPU, for what keeps it idle alone

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WHEN = ("auto", "always", "never")
ON_TILES = ", wide convolutions on tiles"  # said of compiled programs


@dataclass(frozen=True)
class Compute:
    """How an objective computes.

    Args:
        compiled: Whether its programs go through ``torch.compile``.
        precision: Of what carries no gradient to the pixels (the features or parameter gradients of real images).
        chunk: Images that go through a network at once, at most; activation memory is that of one chunk.
        piece: Of what may be divided at no cost, images that go through at once; absent: a chunk.
        tiled: Whether wide convolutions of compiled programs go on tiles, see ``networks.on_tiles``.
    """

    compiled: bool = False
    precision: torch.dtype = torch.float32
    chunk: int = CHUNK
    piece: int | None = None
    tiled: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Of networks and images: compiled programs are fastest channels last, eager normalisation far slower."""
        return torch.channels_last if self.compiled else torch.contiguous_format

    def pieces(self, index: Tensor) -> tuple[Tensor, ...]:
        """``index`` in pieces that cost the least, none larger than a chunk; see ``parts``."""
        return index.tensor_split(parts(len(index), self.at_once))

    @property
    def at_once(self) -> int:
        """Images of a piece, at most."""
        return self.chunk if self.piece is None else min(self.piece, self.chunk)

    def program(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, compiled if asked for; call it with few different shapes."""
        return torch.compile(function, dynamic=False, fullgraph=True) if self.compiled else function


@dataclass(frozen=True)
class ComputeOptions:
    """What the user asks for; ``resolve`` turns it into what runs.

    Args:
        compile: auto compiles where a C++ compiler is at hand and the planned run is long enough to win it back.
        precision: Of the features or parameter gradients of real images. auto is bfloat16 where the machine has
            instructions for it, else float32.
        tiles: Compute wide convolutions of compiled float32 programs on a CPU with a quarter of the products; it rounds
            more and compiles minutes longer. auto does where that is known to be faster, and the planned run is long
            enough.
        chunk: Images that go through a network at once, at most: the memory knob. null is 64 on a CPU, and on a GPU as
            many as have the pixels of 4,096 images of 32x32.
        reuse: Keep the class means of real features (objective dm) in the cache, for runs that differ in storage,
            start, budget or learning rate alone. Numbers stay the same; classes x features x 4 bytes an episode.
    """

    compile: Literal["auto", "always", "never"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tiles: Literal["auto", "always", "never"] = "auto"
    chunk: int | None = None
    reuse: bool = False

    def resolve(
        self,
        device: torch.device,
        operations: float,
        pixels: int = 32 * 32,
        *,
        tiles: int | None = None,
        section: str = "compute",
    ) -> Compute:
        """Settle what is left to the program.

        Args:
            device: Where the run computes.
            operations: Floating-point operations of the whole planned run.
            pixels: Of an image.
            tiles: How many layers may go on tiles, see ``Compute``, each counted as often as compiling it takes as long
                as in a training step; None where none may.
            section: Of the recipe, whose keys are asked; errors name them.

        Raises:
            UserError: For names that are not known, a chunk below 1, ``always`` where ``torch.compile`` cannot, or
                ``tiles`` always where nothing can be on any.
        """
        for key, known in (("compile", WHEN), ("precision", ("auto", *PRECISIONS)), ("tiles", WHEN)):
            if getattr(self, key) not in known:
                raise unknown(f"{section}.{key}", str(getattr(self, key)), known)
        if self.compile == "always" and (lacks := lacking(device)):
            raise UserError(
                f"{section}.compile is always, but torch.compile needs {lacks}; "
                f"or do without: --{section}.compile never"
            )
        precision = PRECISIONS.get(self.precision)
        if precision is None:
            precision = torch.bfloat16 if has_bfloat16(device) else torch.float32
        can_be = tiles is not None and self.compile != "never" and device.type == "cpu" and precision == torch.float32
        if self.tiles == "always" and not can_be:
            raise UserError(
                f"{section}.tiles always is for compiled float32 programs on a CPU, networks that score trained one by "
                "one (evaluate.together 1); here leave it at auto"
            )
        chunk = self.chunk
        if chunk is None:
            chunk = CHUNK if device.type == "cpu" else max(CHUNK, PIXELS_ON_GPU // pixels)
        if chunk < 1:
            raise UserError(f"{section}.chunk must be at least 1, got {chunk}")
        compiled = self.compile == "always" or (self.compile == "auto" and _compiles(device, operations)[0])
        tiled = compiled and can_be and self._tiled(operations, tiles or 0)
        return Compute(compiled, precision, chunk, cached(device, pixels, precision) if compiled else None, tiled)

    def _tiled(self, operations: float, layers: int) -> bool:
        """Whether so many layers go on tiles where they can be."""
        worth = operations >= WORTH_TILING * layers and _tiles_gain()
        return layers > 0 and (self.tiles == "always" or (self.tiles == "auto" and worth))

    def why(self, device: torch.device, operations: float) -> str | None:
        """What auto decides about compiling and why, in words; None where the user decided."""
        if self.compile != "auto":
            return None
        return _compiles(device, operations)[1]


def cached(device: torch.device, pixels: int, precision: torch.dtype) -> int | None:
    """Images of so many pixels whose feature maps the caches of a CPU hold; None on a GPU."""
    return max(1, CACHED_BYTES // (pixels * precision.itemsize)) if device.type == "cpu" else None


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device; a GPU takes it from pinned memory, or the host would wait for all before it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


class Lanes:
    """Streams of a GPU, for work that does not wait for one another; elsewhere one, which is the usual one.

        with lanes as lane:  # the work before is done first
            for place, own in enumerate(several):
                with lane(place):
                    ...
        # from here on what all lanes made can be used

    What a lane gives must be held until all are left, for its memory is taken again by what comes next on that lane.

    Args:
        count: How many, on a GPU.
        device: Of the work.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        several = device.type == "cuda" and torch.cuda.is_available()
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(count)] if several else []

    def __len__(self) -> int:
        """How many there are."""
        return max(1, len(self._streams))

    def __enter__(self) -> Callable[[int], AbstractContextManager[object]]:
        """Begin on all lanes."""
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self._device))
        return self._lane

    def __exit__(self, *_: object) -> None:
        """Go on when all lanes are done."""
        for stream in self._streams:
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def _lane(self, place: int) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._streams[place % len(self)]) if self._streams else nullcontext()


@cache
def lanes(device: torch.device) -> Lanes:
    """The lanes of a device."""
    return Lanes(LANES, device)


def parts(count: int, chunk: int) -> int:
    """Into how many parts so many images fall, none larger than a chunk.

    Equal ones where fewer than twice as many as need be will do, for a program is compiled for each size.
    """
    least = max(1, -(-count // chunk))
    return next((number for number in range(least, 2 * least) if count % number == 0), least)


def _compiles(device: torch.device, operations: float) -> tuple[bool, str]:
    """Whether compiling is worth its while for a run of so many operations, and why."""
    if operations < WORTH_COMPILING.get(device.type, WORTH_COMPILING["cpu"]):
        return False, f"not compiled: the work, {operations:.1e} operations, is too short to win the compilation back"
    if lacks := lacking(device):
        return False, f"not compiled, which takes about twice as long: torch.compile needs {lacks}"
    return True, f"compiled: the work, {operations:.1e} operations, is long enough to win the compilation back"


@contextmanager
def like_convolutions() -> Iterator[None]:
    """Matrix products of float32 as exact as its convolutions: on CUDA TF32, unless the caller forbids it."""
    products: Any = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        yield
    finally:
        products.fp32_precision = before


def lacking(device: torch.device) -> str | None:
    """What ``torch.compile`` needs and does not find on this machine, and how to get it; None where it finds all.

    It looks where PyTorch looks: on a CPU for ``$CXX`` or else the system's C++ compiler, under its usual name alone;
    on a GPU for Triton, which builds its launchers with ``$CC``, gcc or clang.
    """
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "Triton, which is not installed; pip install triton"
        variable, kind, usual = "CC", "C", ["gcc", "clang"]
    else:
        variable, kind, usual = "CXX", "C++", [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    named = os.environ.get(variable)
    if named is None:
        found = any(shutil.which(name) for name in usual)
        return None if found else f"a {kind} compiler, and {' or '.join(usual)} is not found; install {usual[0]}"
    return (
        None if shutil.which(named) else f"a {kind} compiler, and {variable}={named} is not found; correct {variable}"
    )


def _tiles_gain() -> bool:
    """Whether this CPU is of the kind on which convolutions on tiles were measured to be faster."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx2") and not capabilities.get("avx512_f"))


def compiling_takes(tiled: bool) -> str:
    """How much longer a run takes for compiling its programs, in words."""
    return "a few minutes" if tiled else "a minute or two"


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` has what it needs on this machine."""
    return lacking(device) is None


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 runs on instructions of its own there, not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
