"""What ``condensate plan`` says beforehand, held against what a run then takes."""

import gc
import os
import subprocess
import sys
import time
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.measure import forget_peak, resident
from benchmarks.pages import WITHIN
from benchmarks.works import Straight
from condensate import assemble, settling
from condensate.allocation import keep_freed_memory
from condensate.evaluation import train_networks
from condensate.planning import Plan, plan
from condensate.recipe import Recipe
from condensate.sgd import Sgd
from condensate.sheets import resolve
from condensate.streams import Streams
from condensate.training import accuracy

# Each with overrides that keep the check short: fewer steps or matches an episode, or nothing to compile.
CASES: dict[str, dict[str, Any]] = {
    "cifar10-dm-ipc1": {},
    "cifar10-lodm-ipc10": {},
    "cifar10-dc-ipc1": {},
    "cifar10-dc-ipc10": {"objective": {"outer_loop": 2}},
    "cifar10-lodsa-ipc1": {},
    "cifar10-lomtt-ipc1": {"objective": {"syn_steps": 20}},
    "cifar100-lodm-ipc50": {"compute": {"compile": "never"}},
}
PLANS: dict[str, dict[str, Any]] = {f"plan-{name}": {"recipe": name, **overrides} for name, overrides in CASES.items()}
EPISODES = 4  # the first of which compiles


def check(name: str, device: torch.device) -> dict[str, Any]:
    """Expected and measured seconds of an episode and of training, and bytes, on random images of the data's shape.

    Bytes are those of the first episode and network, seconds those of later ones, where there are any; freed memory is
    kept, as in a run.
    """
    keep_freed_memory()
    given = dict(PLANS[name])
    recipe, expected = _planned(given.pop("recipe"), given, device)
    shape, classes = expected.shape, expected.classes
    data = assemble.random_data(shape, device, classes, 300)
    streams = Streams(0, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    forget_peak(kept=True)
    before = resident("VmRSS") if device.type == "cpu" else torch.cuda.memory_allocated(device)
    recipe = settling.settle_compute(
        recipe, shape, classes, expected.images_per_class * classes, device, real=300 * classes
    )
    synthetic = assemble.start(recipe, data, streams)
    matching = _matching(recipe, data, streams, device)
    optimizer = Sgd(synthetic.parameterization.parameters(), momentum=0.5)
    taken: list[float] = []
    long = expected.condense_seconds / recipe.condense.episodes > 60
    for number in range(1 if long else EPISODES):
        began = time.perf_counter()
        for _ in matching.episode(synthetic, number):
            optimizer.step(1e-6)
            optimizer.zero_grad()
        _wait(device)
        taken.append(time.perf_counter() - began)
        if not number:
            condensed = _peak(device) - before
    forget_peak(kept=True)
    epochs = 1 if long else 20
    settled = settling.settle_training(recipe, shape, classes, len(synthetic), device)
    together = settled.evaluate.together or 1
    networks = train_networks(
        synthetic, classes, streams, network=recipe["network"]["name"], network_options=recipe.options("network"),
        repeats=(1 if long else 2) * together, epochs=epochs, augment=assemble.training_augment(recipe),
        **settling.training_way(settled),
    )  # fmt: skip
    scoring = data.test.subset(torch.arange(1000, device=device))
    if not long:
        for _ in range(together):  # warms up
            accuracy(next(networks), scoring)
        _wait(device)
        peak = max(condensed, _peak(device) - before)
    began = time.perf_counter()
    network = next(networks)  # the first of those that are trained together
    _wait(device)
    trained, began = (time.perf_counter() - began) / together, time.perf_counter()
    accuracy(network, scoring)
    scored = 10 * (time.perf_counter() - began)
    if long:
        peak = max(condensed, _peak(device) - before)
    episode = median(taken[1:] or taken)
    options = recipe.evaluate
    said = {
        "episode_seconds": expected.condense_seconds / recipe.condense.episodes,
        "evaluation_seconds_a_network": expected.evaluate_seconds / options.repeats,
        "bytes": expected.memory_bytes - expected.data_bytes,
        "condense_bytes": expected.condense_bytes - expected.data_bytes,
    }
    found = {
        "episode_seconds": episode,
        "evaluation_seconds_a_network": trained / epochs * options.epochs + scored,
        "bytes": peak,
        "condense_bytes": condensed,
    }
    note = ", ".join(_verdict(key, said[key], found[key]) for key in said)
    return {
        "work": name,
        "way": "planned against measured",
        "seconds": [],
        "planned": said,
        "measured": found,
        "note": note,
    }


def _verdict(key: str, said: float, found: float) -> str:
    """What was planned, and whether it is as near as it is to be."""
    ratio, most = said / found, WITHIN[key]
    held = "within" if 1 / most <= ratio <= most else "MISSED:"
    return f"{key}: planned {said:.4g}, measured {found:.4g}, {ratio:.2f} times, {held} a factor of {most:g}"


def _planned(name: str, changes: dict[str, Any], device: torch.device) -> tuple[Recipe, Plan]:
    """A recipe and its plan, from rates measured now, whatever is kept from before.

    That is done in a process of its own, for here the memory it takes would be held already; it keeps them though the
    works before have left the machine busy.
    """
    keys = [f"--{section}.{key}={value}" for section, held in changes.items() for key, value in held.items()]
    program = "from condensate import __main__, rates; rates.busy = lambda: False; __main__.main()"
    command = [sys.executable, "-c", program, "plan", name, "--device", str(device), *keys]
    with TemporaryDirectory() as cache, patch.dict(os.environ, CONDENSATE_CACHE=cache):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        recipe = resolve(name, changes)
        return recipe, plan(recipe, device)


def _peak(device: torch.device) -> int:
    """Bytes held at the most until now."""
    return resident("VmHWM") if device.type == "cpu" else torch.cuda.max_memory_allocated(device)


def _wait(device: torch.device) -> None:
    """Until all that was asked for is computed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matching(recipe: Recipe, data: Any, streams: Streams, device: torch.device) -> Any:
    compute = settling.compute(recipe, data.shape, device)
    if recipe.experts is None:
        return assemble.objective(recipe, data, compute, streams)
    from condensate.augment import Augment
    from condensate.objectives import TrajectoryMatching

    window = recipe.options("objective")
    network, *ends = (
        assemble.network(recipe, data.shape, len(data.classes), streams("network", number)) for number in range(3)
    )
    experts = Straight(ends, window["max_start_epoch"] + window["expert_epochs"])
    return TrajectoryMatching(experts, network, Augment(**recipe["augment"]), streams, compute, **window)
