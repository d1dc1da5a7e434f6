"""Which programs run: compiled or not, and in which precision what needs no gradient is computed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from condensate import compiler
from condensate.capabilities import has_bfloat16, lacking, tiles_gain
from condensate.errors import UserError, unknown

# Compiling a step takes half a minute to a minute; below this many operations in the whole run it does not pay. Two
# cores do 70 to 100 GFLOP/s eagerly: of 100 to 140 seconds programs then spare half with AVX-512, and without it,
# directly, a fifth, which is no more than compiling takes (python -m benchmarks prints both). On an H200 it takes 40 to
# 70 seconds and spares 30 in 1e15 operations of DM or DSA.
WORTH_COMPILING = {"cpu": 1e13, "cuda": 2e15}
# Of each layer that goes on tiles, which compiles up to half a minute longer so and takes two thirds to three quarters
# of the time where this was measured: on two CPUs with AVX2 and no AVX-512.
WORTH_TILING = 1e13

# Images that go through a network at once: on a CPU few, on a GPU many, up to this many pixels of them (4,096 images of
# 32x32), which keep it busy and take a few gigabytes. Fewer yet are best where a CPU's caches hold their feature maps,
# which is by the bytes of one map of each: 32 images of 32x32 in float32, 64 in bfloat16.
CHUNK = 64
PIXELS_ON_GPU = 4096 * 32 * 32
CACHED_BYTES = 128 * 1024

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
        return compiler.compiled(function) if self.compiled else function


@dataclass(frozen=True)
class ComputeOptions:
    """What the user asks for; ``resolve`` turns it into what runs.

    Args:
        compile: auto compiles where a C++ compiler is at hand and the planned run is long enough to win it back.
        precision: Of the features or parameter gradients of real images. auto is bfloat16 where the machine has
            instructions for it, else float32.
        tiles: Compute wide convolutions of compiled float32 programs on a CPU with a quarter of the products; it rounds
            more and compiles longer. auto does where that is known to be faster, and the planned run is long enough.
        chunk: Images that go through a network at once, at most: the memory knob. null is 64 on a CPU, and on a GPU as
            many as have the pixels of 4,096 images of 32x32.
        reuse: Keep the class means of real features (objective dm) in the cache, for runs that differ in storage,
            start, budget or learning rate alone. Numbers stay the same; classes x features x 4 bytes an episode.
        experts: Compile the training of experts (objective mtt): always or never, or always and on tiles. auto does as
            compile and tiles say, where those are auto, too, by the work of all experts.
    """

    compile: Literal["auto", "always", "never"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tiles: Literal["auto", "always", "never"] = "auto"
    chunk: int | None = None
    reuse: bool = False
    experts: Literal["auto", "always", "never", "tiles"] = "auto"

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
        choices = {"compile": WHEN, "precision": ("auto", *PRECISIONS), "tiles": WHEN, "experts": (*WHEN, "tiles")}
        for key, known in choices.items():
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
        against = self._against_tiles(device, precision, section, tiles is not None)
        if self.tiles == "always" and against:
            raise UserError(
                f"{section}.tiles is always, but {', '.join(against)}: tiles are for compiled float32 programs on a "
                "CPU, where networks that score are trained one by one; change that, or leave tiles at auto"
            )
        chunk = self.chunk
        if chunk is None:
            chunk = CHUNK if device.type == "cpu" else max(CHUNK, PIXELS_ON_GPU // pixels)
        if chunk < 1:
            raise UserError(f"{section}.chunk must be at least 1, got {chunk}")
        compiled = self.compile == "always" or (self.compile == "auto" and _compiles(device, operations)[0])
        tiled = compiled and not against and self._tiled(operations, tiles or 0)
        return Compute(compiled, precision, chunk, cached(device, pixels, precision) if compiled else None, tiled)

    def _against_tiles(self, device: torch.device, precision: torch.dtype, section: str, apart: bool) -> list[str]:
        """What keeps all convolutions from tiles, in words."""
        auto = "auto " if self.precision == "auto" else ""
        reasons = {
            f"{section}.compile is never": self.compile == "never",
            f"the device is {device.type}": device.type != "cpu",
            f"{section}.precision {auto}is {str(precision).removeprefix('torch.')}": precision != torch.float32,
            "evaluate.together trains several at once": not apart,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def _tiled(self, operations: float, layers: int) -> bool:
        """Whether so many layers go on tiles where they can be."""
        worth = operations >= WORTH_TILING * layers and tiles_gain()
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
        return False, f"not compiled, which takes longer, up to twice: torch.compile needs {lacks}"
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


def compiling_takes(tiled: bool) -> str:
    """How much longer a run takes for compiling its programs, in words."""
    return "a few minutes" if tiled else "a minute or two"
