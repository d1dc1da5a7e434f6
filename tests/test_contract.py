"""The whole product at toy size: any objective, over any storage, under any network, on any images.

Every network is run under every objective, and every objective over every storage, shape of images, start and kind of
normalisation.
"""

import io
from itertools import product

import pytest
import torch
from rich.console import Console

from condensate import Streams, assemble, load, runs
from condensate.console import Display
from condensate.networks import NETWORKS
from condensate.objectives import OBJECTIVES
from condensate.parameterizations import PARAMETERIZATIONS
from condensate.schema import complete
from condensate.sessions import Session

OBJECTIVE_OPTIONS = {
    "dm": {"batch_real": 4},
    "dm-private": {"batch_real": 4, "clip": 1.0, "noise_multiplier": 1.0},
    "dc": {"batch_real": 4, "outer_loop": 2, "inner_loop": 1},
    "mtt": {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 1},
}
NETWORK_OPTIONS = {
    "convnet": {"width": 8, "depth": 2},
    "mlp": {"width": 16},
    "vit": {"width": 16, "depth": 1, "heads": 2},
}
STORAGES = {"pixels": {}, "lowrank": {"rank": 1}}
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 18, 33)]
SMALL_SHAPES = [(1, 17, 17), (3, 18, 18), (3, 9, 17), (3, 9, 20)]
LARGE = ["alexnet", "vgg11", "resnet18"]  # as wide as they are, on smaller images
STARTS = ["noise", "real", "herding", "k-centre", "k-means"]
NORMS = ["batch", "layer", "group", "none"]
PRIVATE = [name for name, cls in OBJECTIVES.items() if cls.private]  # from noise, no batch statistics


def recipe(objective: str, storage: str, network: str, start: str, **options):
    stated = {"mean": [0.5], "std": [0.5]} if objective in PRIVATE else {}
    values = {
        "data": {"name": "digits", **stated},
        "budget": {"ipc": 1},
        "parameterization": {"name": storage, **STORAGES[storage]},
        "start": {"name": start},
        "network": {"name": network, **NETWORK_OPTIONS.get(network, {}), **options},
        "objective": {"name": objective, **OBJECTIVE_OPTIONS[objective]},
        "compute": {"compile": "never", "precision": "float32"},
        "condense": {"episodes": 2, "lr": 0.01},
        "evaluate": {"repeats": 1, "epochs": 1, "epochs_full": 1},
    }
    return complete("toy", values | ({"experts": {"count": 1}} if objective == "mtt" else {}))


def carried_out(made, shape, folder, monkeypatch, classes: int = 2) -> None:
    """Run it in its folder on random images of a shape; every stored number is finite and has moved."""
    data = assemble.random_data(shape, torch.device("cpu"), classes=classes, each=16)
    monkeypatch.setattr(assemble, "image_data", lambda *_: data)
    if made.experts is not None:
        made = made.with_values(experts={"store": str(folder / "store")})
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), {})
    result = runs.prepare(made, session).at(folder, 0).run()["toy"]
    assert 0 <= result["evaluation"][0]["mean"] <= 1
    started = assemble.start(made, data, Streams(0)).stored()
    for name, tensor in load(folder).stored().items():
        assert bool(tensor.isfinite().all())
        if name != "step_size":
            assert not torch.equal(tensor, started[name])


def test_tables__name_all_there_is():
    assert OBJECTIVE_OPTIONS.keys() == OBJECTIVES.keys()
    assert STORAGES.keys() | {"uint8"} == PARAMETERIZATIONS.keys()  # uint8 holds real images, nothing is learned there


def slow_if(pairs, *slow):
    """Pairs as parameters, those that take ten seconds each as slow tests."""
    return [pytest.param(*pair, marks=[pytest.mark.slow] if pair in slow else []) for pair in pairs]


@pytest.mark.parametrize(("objective", "network"), slow_if(product(OBJECTIVES, NETWORKS), ("mtt", "resnet18")))
def test_run__any_objective_under_any_network(objective, network, tmp_path, monkeypatch):
    number = [*OBJECTIVES].index(objective) + [*NETWORKS].index(network)
    storage = [*STORAGES][number % 2]
    shape = (SMALL_SHAPES if network in LARGE else [*SHAPES, (3, 20, 20)])[number % 4]
    start = "noise" if objective in PRIVATE else STARTS[number // 4 % 4]
    made = recipe(objective, storage, network, start)
    if network in LARGE:
        made = made.with_values(condense={"episodes": 1})
    carried_out(made, shape, tmp_path, monkeypatch)


@pytest.mark.parametrize(("objective", "storage", "shape"), [*product(OBJECTIVES, STORAGES, SHAPES)], ids=str)
def test_run__any_objective_over_any_storage_on_any_images(objective, storage, shape, tmp_path, monkeypatch):
    carried_out(recipe(objective, storage, "convnet", "noise"), shape, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("objective", "storage", "start"), [*product([o for o in OBJECTIVES if o not in PRIVATE], STORAGES, STARTS[1:])]
)
def test_run__any_objective_and_storage_from_real_images(objective, storage, start, tmp_path, monkeypatch):
    carried_out(recipe(objective, storage, "convnet", start), (1, 12, 12), tmp_path, monkeypatch)


def normed(norms, *slow):
    """Every objective with every norm that it takes."""
    pairs = [(o, norm) for o, norm in product(OBJECTIVES, norms) if norm != "batch" or o not in PRIVATE]
    return pytest.mark.parametrize(("objective", "norm"), slow_if(pairs, *slow))


@normed(NORMS)
def test_run__any_objective_under_any_normalisation(objective, norm, tmp_path, monkeypatch):
    carried_out(recipe(objective, "pixels", "convnet", "noise", norm=norm), (3, 8, 8), tmp_path, monkeypatch)


@normed(["instance", "batch"], ("dc", "batch"))
def test_run__hundred_classes_of_rank_one_on_images_that_are_not_square(objective, norm, tmp_path, monkeypatch):
    made = recipe(objective, "lowrank", "convnet", "noise", norm=norm)
    carried_out(made, (1, 6, 10), tmp_path, monkeypatch, classes=100)
