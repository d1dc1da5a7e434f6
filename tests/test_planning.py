"""What a run is said to take."""

import os
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from condensate import Compute, Streams, assemble, build_network, peaks, planning, rates, settling
from condensate.data.disk import AHEAD
from condensate.losses import trained_at_once
from condensate.networks import forward_operations
from condensate.sheets import resolve


@pytest.mark.parametrize(
    ("networks", "least", "most"),
    [(["same"], 1, 1), (["same", "convnet-d3"], 2, 2), (["convnet-w32", "mlp"], 0, 0.2), (["batchnorm"], 10, 100)],
    ids=str,
)
def test_evaluation__networks_count_by_their_operations(networks, least, most):
    recipe = resolve("cifar10-dm-ipc1", {"evaluate": {"networks": networks}})
    assert least <= planning._evaluated_work(recipe, (3, 32, 32), 10) <= most


@pytest.mark.parametrize("name", ["convnet", "mlp", "lenet", "alexnet", "vgg11", "resnet18"])
def test_forward_operations__are_those_pytorch_counts(name):
    network = build_network(name, (3, 32, 32), 10, Streams(0)("net"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    assert forward_operations(network.train(), (3, 32, 32)) == counter.get_total_flops()
    assert network.training


def test_plan__experts__counted_until_they_are_there(tmp_path):
    changes = {
        "network": {"width": 8, "depth": 1},
        "objective": {"max_start_epoch": 2, "expert_epochs": 1},
        "experts": {"count": 2, "store": str(tmp_path)},
    }
    recipe, device = resolve("digits-lomtt", changes), torch.device("cpu")
    before = planning.plan(recipe, device).experts
    store = assemble.make_experts(recipe, assemble.image_data(recipe, device))
    after = planning.plan(recipe, device).experts
    assert (before.count, before.missing, before.epochs) == (2, 2, 2)
    assert before.seconds > 0
    assert (after.missing, after.seconds) == (0, 0)
    on_disk = sum(file.stat().st_size for file in store.folder.glob("expert-*"))
    assert after.bytes == pytest.approx(on_disk, rel=0.2)


def test_plan__data_not_at_hand__all_experts_and_no_time():
    narrow = {"network": {"width": 8}}
    recipe = resolve("cifar10-dm-ipc1", narrow | {"objective": {"name": "mtt"}})
    expected = planning.plan(recipe, torch.device("cpu")).experts
    assert (expected.count, expected.missing, expected.epochs, expected.seconds) == (100, 100, 6, None)
    assert planning.plan(resolve("cifar10-dm-ipc1", narrow), torch.device("cpu")).experts is None


def test_plan__compiled_training__pieces_but_of_batch_statistics():
    eager = {"compile": "never", "precision": "float32"}

    def saved(norm: str) -> int:
        """Bytes by which pieces make training cheaper."""
        recipe = resolve("cifar10-dm-ipc10", {"network": {"width": 16, "norm": norm}, "compute": eager})
        whole, pieces = (
            max(peaks.peaks(recipe, (3, 32, 32), 10, 2560, 2560, piece, torch.device("cpu"))) for piece in (None, 32)
        )
        return whole - pieces

    assert saved("instance") > 0
    assert saved("batch") == 0


def test_plan__compiled_and_on_tiles__takes_more_from_there_on():
    """Scoring follows in the same process."""

    def peaked(*ways: tuple[str, str]) -> tuple[int, int]:
        condensed, scored = ({"compile": c, "precision": "float32", "tiles": t} for c, t in ways)
        changes = {"network": {"width": 64}, "compute": condensed, "evaluate": scored}
        return peaks.peaks(resolve("cifar10-dm-ipc10", changes), (3, 32, 32), 10, 100, 100, 32, torch.device("cpu"))

    eager, direct, tiled = ("never", "never"), ("always", "never"), ("always", "always")
    program, tiles = peaks.COMPILER_BYTES, peaks.TILES_BYTES
    none, both = peaked(eager, eager), peaked(direct, direct)
    layers = both[0] - peaks.SCRATCH_BYTES - program  # half of what an eager program on as many images has
    assert both[1] - none[1] == peaked(direct, eager)[1] - none[1] == program
    assert peaked(tiled, direct) == (both[0] + layers + tiles, both[1] + tiles)
    assert peaked(eager, tiled) == (none[0], none[1] + program + tiles)


def test_plan__images_of_any_size__training_and_scoring_take_no_more(monkeypatch):
    """So many pixels go through a network at once, whatever an image has of them."""
    monkeypatch.setattr(peaks, "SCRATCH_BYTES", 0)
    changes = {"network": {"width": 16}, "compute": {"compile": "never", "precision": "float32"}}
    seen = []
    for side in (32, 64, 128):
        shape, recipe = (3, side, side), resolve("cifar10-dm-ipc10", changes)
        piece = trained_at_once(shape, Compute(), torch.device("cpu"))
        seen.append(peaks.peaks(recipe, shape, 10, 400, 400, piece, torch.device("cpu"))[1] - 400 * 12 * side**2)
    assert max(seen) < 1.6 * min(seen)


def test_plan__several_kinds_of_networks__the_time_of_all_and_the_room_of_the_largest():
    """Of kinds that are scored, too, each by its operations."""
    device, mlp = torch.device("cpu"), {"network": {"name": "mlp"}, "compute": {"compile": "never"}}

    def planned(*networks: str) -> planning.Plan:
        changes = {"evaluate": {"networks": list(networks), "compile": "never", "epochs": 1}}
        return planning.plan(resolve("cifar10-dm-ipc1", mlp | changes), device)

    small, large, both = planned("same"), planned("vgg11"), planned("same", "vgg11")
    assert both.evaluate_seconds == pytest.approx(small.evaluate_seconds + large.evaluate_seconds)
    assert both.memory_bytes == large.memory_bytes > small.memory_bytes
    assert both.condense_bytes == small.condense_bytes


def test_plan__data_not_at_hand__their_bytes_are_counted():
    narrow = {"network": {"width": 8, "depth": 1}, "compute": {"compile": "never"}}
    expected = planning.plan(resolve("cifar10-dm-ipc1", narrow), torch.device("cpu"))
    assert expected.data_bytes == 60_000 * 32 * 32 * 3 < expected.condense_bytes
    on_disk = planning.plan(resolve("cifar10-dm-ipc1", narrow | {"data": {"hold": "disk"}}), torch.device("cpu"))
    assert on_disk.data_bytes == 60_000 * 24 + AHEAD
    assert planning.plan(resolve("digits-dm", narrow), torch.device("cpu")).data_bytes == 1797 * 64


def test_rates__kept_where_nothing_else_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path))
    monkeypatch.setattr(rates, "_measured", {})
    measured = iter(range(1, 9))
    monkeypatch.setattr(rates, "_measure", lambda *_: rates.Rates(*[next(measured)] * 5))
    device = torch.device("cpu")
    recipe = settling.settle_compute(resolve("digits-dm"), (1, 8, 8), 10, 10, device, 1297)

    def found() -> float:
        return rates.measured_rates(recipe, (1, 8, 8), 10, 16, device).features

    monkeypatch.setattr("os.getloadavg", lambda: (float(os.cpu_count() or 1), 0.0, 0.0))
    assert (found(), found()) == (1, 1)  # of this process
    rates._measured.clear()
    assert found() == 2
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.0, 0.0))
    rates._measured.clear()
    assert found() == 3
    rates._measured.clear()
    assert found() == 3
    monkeypatch.setattr(rates, "processor", lambda: "another")
    assert found() == 4


@pytest.mark.parametrize(("name", "count"), [("digits-dm-private", 1297), ("cifar10-dm-ipc1", 50_000)])
def test_plan__of_a_part_held_out_to_validate__is_of_the_rest(name: str, count: int):
    """Whether the data are at hand or not, to an image a class."""
    private = {
        "objective": {"name": "dm-private", "batch_real": 100, "clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
    }
    small = {"network": {"width": 8, "depth": 1}, "compute": {"compile": "never"}, "condense": {"episodes": 9}}
    changes = private | small | {"data": {"validation": 0.2}, "evaluate": {"split": "validation"}}
    recipe = resolve(name, changes)
    there = planning._data(recipe)
    assert there.trained == pytest.approx(0.8 * count, abs=10)
    assert there.scored == pytest.approx(0.2 * count, abs=10)
    told = planning.plan(recipe, torch.device("cpu")).privacy
    assert told["sample_rate"] == pytest.approx(1000 / there.trained)
    stream = resolve(name, changes | {"continual": {"steps": 5}})
    assert planning.plan(stream, torch.device("cpu")).privacy is None


def test_plan__stream_of_classes__all_its_orders_and_memories():
    """Five orders condense all classes five times; networks train on 2, 4, ... 10 of the classes: three whole sets."""
    alone, device = planning.plan(resolve("digits-lodm"), torch.device("cpu")), torch.device("cpu")
    changes = {"continual": {"steps": 5, "orders": 5}}
    stream = planning.plan(resolve("digits-lodm", changes), device)
    assert stream.sets == 5
    assert stream.condense_seconds == pytest.approx(5 * alone.condense_seconds)
    assert stream.evaluate_seconds == pytest.approx(15 * alone.evaluate_seconds)
    assert stream.bytes == alone.bytes
    fixed = planning.plan(resolve("digits-lodm", {"continual": {"steps": 5, "orders": 1, "budget": "fixed"}}), device)
    assert fixed.evaluate_seconds == pytest.approx(5 * alone.evaluate_seconds)


def test_plan__privacy__all_its_shadows():
    alone, device = planning.plan(resolve("digits-lodm"), torch.device("cpu")), torch.device("cpu")
    shadows = planning.plan(resolve("digits-lodm", {"privacy": {"shadows": 8, "networks": 2}}), device)
    assert shadows.condense_seconds == pytest.approx(8 * alone.condense_seconds)
    assert shadows.evaluate_seconds == pytest.approx(8 * 2 / 5 * alone.evaluate_seconds)


def test_measure__there_and_back__takes_the_operations_that_objectives_count_in(monkeypatch):
    def operations(work, device) -> float:
        with FlopCounterMode(display=False) as counted:
            work()
        return counted.get_total_flops()

    monkeypatch.setattr(rates, "_seconds", operations)
    recipe = resolve("cifar10-lodsa-ipc1", {"network": {"width": 8}, "compute": {"compile": "never"}})
    found = rates._measure(recipe, (3, 32, 32), 10, 16, torch.device("cpu"))
    assert found.features / found.there_and_back == pytest.approx(3, rel=0.01)
    assert 2 < found.scoring / found.training < 3  # no gradient to the pixels
