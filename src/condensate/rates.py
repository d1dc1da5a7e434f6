"""Images a second through a recipe's network on this machine."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from condensate import assemble, settling
from condensate.atomic import replacing
from condensate.compute import Compute, like_convolutions
from condensate.data.cache import folder as cache_folder
from condensate.parameterizations import Shape
from condensate.recipe import Recipe
from condensate.records import processor
from condensate.sgd import Sgd
from condensate.streams import Streams
from condensate.training import scored_at_once

PATIENCE = 0.8  # seconds a measurement goes on for
# How much faster than eager ones compiled programs are: python -m benchmarks. Two cores, where freed memory is kept,
# which speeds up eager ones the most: 1.0 to 1.2 without AVX-512, on tiles 1.7 to 1.9; with AVX-512 not measured so.
# An H200: 2.6 (MTT) to 3.0; all but MTT was eager in bfloat16, and is held against compiled float32 here.
COMPILED_GAIN = {"cpu": 1.25, "cuda": 2.5}
TILED_GAIN = 1.4  # beside that, on tiles


@dataclass(frozen=True)
class Rates:
    """Images a second through a network on this machine, as the run does it.

    Args:
        features: Without gradient, in the precision of the recipe.
        there_and_back: Forward, and back to the parameters and the pixels: thrice a forward's operations, float32.
        real_gradients: Likewise of real images, in the precision of the recipe.
        training: Through a training step, float32, eager.
        scoring: Without gradient, float32, eager.
    """

    features: float
    there_and_back: float
    real_gradients: float
    training: float
    scoring: float


_measured: dict[Path, Rates] = {}  # by this process


def measured_rates(recipe: Recipe, shape: Shape, classes: int, batch: int, device: torch.device) -> Rates:
    """Measured in seconds, kept in the cache if the CPU was idle before; ``batch`` images are trained on at once."""
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else f"{processor()} x {torch.get_num_threads()}"
    how = {key: value for key, value in recipe["compute"].items() if key not in ("reuse", "experts")}
    key = [recipe["network"], shape, classes, batch, how, where, str(torch.__version__)]
    key += [COMPILED_GAIN[device.type], TILED_GAIN, scored_at_once(shape, device)]
    file = cache_folder() / f"rates-{sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError):
        return Rates(**json.loads(file.read_text()))
    if file not in _measured:
        quiet = not busy()
        _measured[file] = _measure(recipe, shape, classes, batch, device)
        if quiet:
            with suppress(OSError), replacing(file) as part:  # a cache that cannot be written only costs time
                part.write_text(json.dumps(_measured[file].__dict__))
    return _measured[file]


def busy() -> bool:
    """Whether, in the last minute, more than a core in four was at work, where the system tells."""
    try:
        return os.getloadavg()[0] > max(1.0, (os.cpu_count() or 1) / 4)
    except (AttributeError, OSError):
        return False


def _measure(recipe: Recipe, shape: Shape, classes: int, batch: int, device: torch.device) -> Rates:
    """Rates of eager programs, in those of compiled ones where the run compiles."""
    compute = settling.compute(recipe, shape, device)
    net = assemble.network(recipe, shape, classes, Streams(0, device)("rates"))
    precision = torch.float32 if compute.compiled else compute.precision
    low = assemble.network(recipe, shape, classes, Streams(0, device)("rates")).to(precision)
    images = torch.zeros(compute.chunk, *shape, device=device)
    few = torch.zeros(batch, *shape, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)

    def features() -> None:
        with torch.no_grad():
            low.features(images.to(precision))

    scored = torch.zeros(scored_at_once(shape, device), *shape, device=device)

    def scoring() -> None:
        with torch.no_grad():
            net(scored)

    def there_and_back() -> None:
        net(images.clone().requires_grad_()).sum().backward()
        net.zero_grad()

    optimizer = Sgd(net.parameters(), fused=True)
    augment = assemble.training_augment(recipe)
    generator = Streams(0, device)("rates")

    def training() -> None:
        cross_entropy(net(augment.unpaired(few, generator)), labels).backward()
        optimizer.step(1e-6)
        optimizer.zero_grad()

    gain, low_gain = 1.0, 1.0
    if compute.compiled:
        gain = COMPILED_GAIN[device.type]
        low_gain = gain * _product_rate(compute.precision, device) / _product_rate(torch.float32, device)
    if compute.tiled:
        low_gain *= TILED_GAIN
    both_ways = compute.chunk / _seconds(there_and_back, device)
    return Rates(
        low_gain * compute.chunk / _seconds(features, device),
        gain * (TILED_GAIN if compute.tiled else 1.0) * both_ways,
        low_gain * both_ways,
        batch / _seconds(training, device),
        len(scored) / _seconds(scoring, device),
    )


def training_gain(compute: Compute, device: torch.device) -> float:
    """How much faster than eagerly networks are trained so."""
    return (COMPILED_GAIN[device.type] if compute.compiled else 1.0) * (TILED_GAIN if compute.tiled else 1.0)


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Matrix products a second, of one size."""
    side = 8192 if device.type == "cuda" else 1024  # long beside the start of a kernel
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    with like_convolutions():
        return 1 / _seconds(lambda: a @ b, device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a piece of work."""
    work()
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 3 or (time.perf_counter() - began < PATIENCE and len(taken) < 50):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]
