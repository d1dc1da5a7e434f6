"""Every way from data to scores on a GPU that is pretended: all of it in one place, and no episode waits for it."""

import gc
import io
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from condensate import (
    Augment,
    ClassicAugment,
    Compute,
    DistributionMatching,
    Streams,
    Union,
    assemble,
    build_network,
    condense,
    fit,
    load,
    runs,
)
from condensate.console import Display
from condensate.evaluation import train_networks
from condensate.recipe import Values, merge
from condensate.sessions import Session
from condensate.sheets import resolve
from condensate.studies import continual, privacy
from condensate.training import Augmentation
from tests.pretended import Generator, pretended_gpu
from tests.recorded import Recorded, recorder

DEVICE = torch.device("cuda")
TINY: Values = {
    "network": {"width": 8, "depth": 2},
    "condense": {"episodes": 5, "checkpoint": 1},  # the third is recorded
    "evaluate": {"repeats": 2, "epochs": 2, "epochs_full": 1},
    "compare": [],
}
SMALL: dict[str, Values] = {
    "digits-dm": {"objective": {"batch_real": 8}},
    "digits-lodm": {"objective": {"batch_real": 8}},
    "digits-lodc": {"objective": {"batch_real": 8, "outer_loop": 2, "inner_loop": 1}},
    "digits-lodsa": {"objective": {"batch_real": 8, "outer_loop": 1, "inner_loop": 1}},
    "digits-lomtt": {"objective": {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2}, "experts": {"count": 1}},
}
BFLOAT16: Values = {"compute": {"precision": "bfloat16"}, "evaluate": {"precision": "bfloat16"}}
BATCH_NORM: Values = {"network": {"norm": "batch"}}
WAYS: list[tuple[str, Values]] = [
    *((name, {}) for name in SMALL),
    ("digits-lodm", {**BFLOAT16, "compare": ["random-uint8", "herding", "k-centre", "full"]}),
    ("digits-lodsa", {**BFLOAT16, "compute": {"precision": "bfloat16", "chunk": 7}}),
    ("digits-lodm", {"compute": {"chunk": 7, "reuse": True}, "evaluate": {"together": 1}}),
    ("digits-lodm", {**BATCH_NORM, "evaluate": {"networks": ["mlp", "alexnet"], "repeats": 1}}),
    ("digits-lodc", BATCH_NORM),
    ("digits-lodm", {"data": {"hold": "disk", "workers": 0}}),
    ("digits-lodm", {"data": {"zca": True}, "evaluate": {"augmentation": "dc"}}),
    ("digits-lodm", {"start": {"name": "k-means"}, "objective": {"updates": 2}, "condense": {"schedule": "cosine"}}),
    ("digits-lomtt", {"condense": {"lr_labels": 0.1, "lr_step": 1e-5}}),
]


def session(command: str = "run") -> Session:
    return Session(DEVICE, Display(Console(file=io.StringIO())), {}, command=command)


def test_pretended_gpu__what_a_gpu_refuses__fails():
    with pretended_gpu():
        there, here = torch.zeros(3, device="cuda"), torch.ones(3)
        layer = torch.nn.Linear(3, 2).to("cuda")
        layer(there).sum().backward()
        assert {there.device.type, (there + 1).device.type, layer.weight.grad.device.type} == {"cuda"}
        assert {here.device.type, there.cpu().device.type, (here + 1).device.type} == {"cpu"}
        assert torch.rand(2, generator=Generator(), device="cuda").device.type == "cuda"
        assert torch.func.grad(lambda x: (x * there).sum())(there).device.type == "cuda"
        for mixed in (lambda: there + here, lambda: layer(here), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mixed()


def test_pretended_gpu__where_the_host_waits__counted():
    with pretended_gpu() as gpu:
        there, here = torch.zeros(3, device="cuda"), torch.ones(3)
        float(here.sum())
        _ = there + 1
        assert not gpu.waits
        float(there.sum())
        there.cpu()
        there.nonzero()
        here.copy_(there)
        here.to("cuda")
        there.copy_(here)
        torch.tensor([1.0], device="cuda")
        _ = there[torch.tensor([0])]
        here.to("cuda", non_blocking=True)
        assert gpu.waits.total() == 9
        here.pin_memory().to("cuda", non_blocking=True)
        there.copy_(here.pin_memory(), non_blocking=True)
        assert gpu.waits.total() == 9


@pytest.mark.filterwarnings("ignore:CUDA is not available")  # says autocast
@pytest.mark.parametrize(("name", "changes"), WAYS, ids=str)
def test_run__on_a_pretended_gpu__scores_what_it_condensed(tmp_path: Path, monkeypatch, name: str, changes: Values):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    with pretended_gpu():
        recipe = resolve(name, merge(merge(TINY, SMALL[name]), changes))
        results = runs.prepare(recipe, session()).at(tmp_path / "run", 0).run()
        assert all(0 <= value <= 1 for row in results.values() for value in row["evaluation"][0]["accuracies"])
    assert load(tmp_path / "run").images().isfinite().all()
    assert results[name]["device"] == "pretended"


def test_continual__on_a_pretended_gpu__ends(tmp_path: Path):
    with pretended_gpu():
        recipe = resolve("digits-continual-dm-5steps", merge(TINY, {"objective": {"batch_real": 8}}))
        continual.prepare(recipe, session("continual")).at(tmp_path).run()
    assert (tmp_path / "result.json").is_file()


def test_privacy__on_a_pretended_gpu__ends(tmp_path: Path, monkeypatch):
    for name in ("measure", "among_nearest"):
        monkeypatch.setattr(privacy, name, partial(getattr(privacy, name), resamples=20))
    changes = {"objective": {"batch_real": 4}, "privacy": {"shadows": 4, "networks": 1}, "compare": ["random"]}
    with pretended_gpu():
        privacy.prepare(resolve("digits-lodm", merge(TINY, changes)), session("privacy")).at(tmp_path).run()
    assert (tmp_path / "result.json").is_file()


@pytest.mark.parametrize("chunk", [7, 512])
@pytest.mark.parametrize("name", ["digits-lodm", "digits-lodsa", "digits-lomtt"])
def test_condense__on_a_pretended_gpu__no_episode_waits(tmp_path: Path, monkeypatch, name: str, chunk: int):
    """Of what is copied once a run, and at the end, more episodes copy no more."""
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path))
    monkeypatch.setattr("condensate.loop.LOOKED_AT_EVERY", 1e9)
    recipe, counted = resolve(name, merge(TINY, SMALL[name])), []
    if recipe.experts:
        with pretended_gpu():
            assemble.make_experts(recipe, assemble.image_data(recipe, DEVICE))
    for episodes in (1, 5):  # the third is recorded
        with pretended_gpu() as gpu:
            data = assemble.image_data(recipe, DEVICE)
            synthetic = assemble.start(recipe, data, Streams(0, DEVICE))
            objective = assemble.objective(recipe, data, Compute(chunk=chunk), Streams(0, DEVICE))
            gpu.waits.clear()
            condense(synthetic, objective, episodes=episodes, lr=0.1)
            counted.append(gpu.waits)
    assert counted[1] == counted[0]


def test_condense__on_a_pretended_gpu__kept_features_are_not_waited_for(tmp_path: Path):
    recipe, counted = resolve("digits-lodm", merge(TINY, SMALL["digits-lodm"])), []
    for episodes in (4, 1, 4):  # the first computes and keeps them
        with pretended_gpu() as gpu:
            data = assemble.image_data(recipe, DEVICE)
            synthetic = assemble.start(recipe, data, Streams(0, DEVICE))
            objective = assemble.objective(recipe, data, Compute(), Streams(0, DEVICE))
            objective.reuse(tmp_path, {})
            gpu.waits.clear()
            for number in range(episodes):
                list(objective.episode(synthetic, number))
            counted.append(gpu.waits)
    assert counted[2] == counted[1]
    assert counted[0].total() - counted[2].total() == 4  # one a row that is kept


@pytest.mark.parametrize("augment", [Augment(), ClassicAugment()], ids=["dsa", "dc"])
@pytest.mark.parametrize("together", [1, 2])
def test_train_networks__on_a_pretended_gpu__no_epoch_waits(monkeypatch, together: int, augment: Augmentation):
    monkeypatch.setattr("condensate.training.STEPS_RECORDED", 16)
    counted = []
    for epochs in (1, 4):  # the step is recorded in the longer one
        with pretended_gpu() as gpu:
            data = assemble.image_data(resolve("digits-dm"), DEVICE)
            networks = train_networks(
                data.train,
                10,
                Streams(0, DEVICE),
                repeats=2,
                epochs=epochs,
                network_options={"width": 8, "depth": 2},
                augment=augment,
                together=together,
            )
            gpu.waits.clear()
            assert len(list(networks)) == 2
            counted.append(gpu.waits)
    assert counted[1] == counted[0]


@pytest.mark.parametrize("together", [1, 2])
def test_train_networks__on_a_pretended_gpu__recorded_steps_train_as_others(monkeypatch, together: int):
    """Of two sizes of batches, and past the fall of the learning rate."""
    trained = []
    for least in (8, 10**9):
        monkeypatch.setattr("condensate.training.STEPS_RECORDED", least)
        with pretended_gpu():
            data = assemble.image_data(resolve("digits-dm"), DEVICE)
            networks = train_networks(
                data.train.subset(torch.arange(300, device=DEVICE)),
                10,
                Streams(0, DEVICE),
                repeats=2,
                epochs=10,
                network_options={"width": 8, "depth": 2},
                augment=Augment(),
                together=together,
            )
            trained.append([p.detach().clone() for network in networks for p in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


@contextmanager
def watched(monkeypatch) -> Iterator[list[weakref.ref[Recorded]]]:
    """What is recorded on a pretended GPU; the garbage collector takes none of it."""
    made: list[weakref.ref[Recorded]] = []

    def recorder_of(device):
        def record(work, generators):
            recorded = recorder(device)(work, generators)
            made.append(weakref.ref(recorded))
            return recorded

        return record

    with pretended_gpu():
        monkeypatch.setattr("condensate.recording.cuda_recorder", recorder_of)
        gc.collect()
        gc.disable()
        try:
            yield made
        finally:
            gc.enable()


@pytest.mark.parametrize(("batch", "least", "times"), [(256, 8, 4), (32, 20, 2), (256, 11, 0)])
def test_fit__records_sizes_that_come_often_and_lets_go_of_them(monkeypatch, batch: int, least: int, times: int):
    """At each of two rates. A graph that the garbage collector frees while another one is recorded ends that."""
    monkeypatch.setattr("condensate.training.STEPS_RECORDED", least)
    with watched(monkeypatch) as made:
        data = assemble.image_data(resolve("digits-dm"), DEVICE)
        few = data.train.subset(torch.arange(300, device=DEVICE))
        network = build_network("convnet", data.shape, 10, Streams(0)("network"), width=4, depth=1).to(DEVICE)
        fit(network, few, epochs=10, generator=Streams(0, DEVICE)("order"), augment=Augment(), batch=batch)
        assert [recorded() for recorded in made] == [None] * times


def test_condense__lets_go_of_what_was_recorded(monkeypatch):
    recipe = resolve("digits-lodm", TINY)
    with watched(monkeypatch) as made:
        data = assemble.image_data(recipe, DEVICE)
        synthetic = assemble.start(recipe, data, Streams(0, DEVICE))
        objective = assemble.objective(recipe, data, Compute(), Streams(0, DEVICE))
        condense(synthetic, objective, episodes=5, lr=0.1)
        assert [recorded() for recorded in made] == [None]


def test_nothing_is_recorded__of_what_the_host_draws(monkeypatch):
    """Streams on the CPU, images on the GPU: a recording would hold the numbers of one episode for all."""

    def refuse(device):
        raise AssertionError("nothing is to be recorded")

    monkeypatch.setattr("condensate.training.STEPS_RECORDED", 8)
    recipe = resolve("digits-lodm", TINY)
    with pretended_gpu():
        monkeypatch.setattr("condensate.recording.cuda_recorder", refuse)
        data = assemble.image_data(recipe, DEVICE)
        network = build_network("convnet", data.shape, 10, Streams(0)("network"), width=8, depth=2).to(DEVICE)
        synthetic = assemble.start(recipe, data, Streams(0, DEVICE))
        matching = DistributionMatching(data.train, network, Augment(), Streams(0), batch_real=8)
        condense(synthetic, matching, episodes=5, lr=0.1)
        few = data.train.subset(torch.arange(300, device=DEVICE))
        fit(network.requires_grad_(True), few, epochs=10, generator=Streams(0)("order"), augment=Augment())


@pytest.mark.parametrize("examples", ["union", "replay of a union"])
def test_nothing_is_recorded__of_what_reads_on_the_host(monkeypatch, examples: str):
    def refuse(device):
        raise AssertionError("nothing is to be recorded")

    monkeypatch.setattr("condensate.training.STEPS_RECORDED", 8)
    with pretended_gpu():
        monkeypatch.setattr("condensate.recording.cuda_recorder", refuse)
        data = assemble.image_data(resolve("digits-lodm", TINY), DEVICE)
        few = data.train.subset(torch.arange(300, device=DEVICE))
        both = Union([few, few])
        network = build_network("convnet", data.shape, 10, Streams(0)("network"), width=4, depth=1).to(DEVICE)
        given = {"epochs": 10, "generator": Streams(0, DEVICE)("order"), "augment": Augment()}
        fit(network, both if examples == "union" else few, replay=None if examples == "union" else both, **given)
