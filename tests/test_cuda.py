"""Every method on a GPU, compiled and not: the whole way from data to scores, stopped and gone on with."""

import io
import math
import time

import pytest
import torch
from rich.console import Console

from condensate import Augment, Compute, Streams, assemble, condense, load, runs
from condensate.console import Display
from condensate.evaluation import train_networks
from condensate.loop import Progress
from condensate.recipe import Values
from condensate.sessions import OutOfTime, Session
from condensate.sheets import resolve
from condensate.tables import Cell, Place, Profile, finished, read, run_cell

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("default")]  # the compiler warns of TF32, among others

DEVICE = torch.device("cuda")
TINY: Values = {
    "network": {"width": 16, "depth": 2},
    "condense": {"episodes": 3, "checkpoint": 1},
    "evaluate": {"repeats": 3, "epochs": 4, "epochs_full": 1, "together": 3},
    "compare": [],
}
METHODS: dict[str, Values] = {
    "digits-lodm": {"objective": {"batch_real": 16}},
    "digits-dm": {"objective": {"batch_real": 16}},
    "digits-lodc": {"objective": {"batch_real": 16, "outer_loop": 2, "inner_loop": 1}},
    "digits-dsa": {"objective": {"batch_real": 16, "outer_loop": 1, "inner_loop": 1}},  # one image a class
    "digits-lodsa": {"objective": {"batch_real": 16, "outer_loop": 2, "inner_loop": 1}},
    "digits-lomtt": {"objective": {"syn_steps": 3, "max_start_epoch": 2}, "experts": {"count": 2}},
}


def session() -> Session:
    return Session(DEVICE, Display(Console(file=io.StringIO())), TINY)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("compute", [{"compile": "never"}, {"compile": "always", "precision": "bfloat16"}], ids=str)
def test_run__a_method_on_a_gpu__condenses_and_scores(tmp_path, monkeypatch, name, compute):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    recipe = resolve(name, TINY).with_values(**METHODS[name], compute=compute)
    recipe = recipe.with_values(evaluate={"compile": compute["compile"]})
    started = runs.prepare(recipe.with_values(condense={"episodes": 0}), session()).at(tmp_path / "start", 0)
    started.run()
    result = runs.prepare(recipe, session()).at(tmp_path / "run", 0).run()[name]
    first, last = (load(tmp_path / folder).images() for folder in ("start", "run"))
    assert last.isfinite().all()
    assert not torch.equal(first, last)
    assert len(result["evaluation"][0]["accuracies"]) == 3
    assert all(math.isfinite(accuracy) for accuracy in result["evaluation"][0]["accuracies"])
    assert result["peak_bytes"] > 0


def test_run_cell__stopped_after_every_look__goes_on_to_the_end(tmp_path):
    cell = Cell(Profile("tiny", "tiny", fraction=0.1, changes=TINY | {"condense": {}}), "digits-lodm")
    place = Place(tmp_path, "cuda", 1)
    for _ in range(200):
        try:
            run_cell(cell, place, until=time.monotonic())
            break
        except OutOfTime:
            pass
    assert finished(tmp_path, cell)
    assert read(tmp_path, cell)["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["digits-lodm", "digits-lodsa", "digits-lomtt"])
def test_episodes__recorded_and_replayed__give_what_they_give_otherwise(tmp_path, monkeypatch, name, compiled):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path))
    once = {"objective": METHODS[name]["objective"] | ({"outer_loop": 1} if name == "digits-lodsa" else {})}
    recipe = resolve(name, TINY).with_values(**METHODS[name] | once)
    data = assemble.image_data(recipe, DEVICE)
    if recipe.experts:
        assemble.make_experts(recipe, data)
    losses, asked = [], []
    for replay in (False, True):
        torch._dynamo.reset()
        made = assemble.start(recipe, data, Streams(0, DEVICE))
        matching = assemble.objective(recipe, data, Compute(compiled, torch.bfloat16, 512), Streams(0, DEVICE))
        assert matching.recordable
        gradients = matching.gradients

        def watched(*given, replay=replay, gradients=gradients):
            asked.append(replay)
            return gradients(*given)

        monkeypatch.setattr(matching, "gradients", watched)
        reports: list[Progress] = []
        condense(made, matching, episodes=8, lr=0.1, after=reports.append, replay=replay)
        losses.append([loss for report in reports for loss in report.losses])
    assert asked == [False] * 8 + [True] * 3  # two episodes as they are, and the recording
    assert len(set(losses[0])) == 8
    assert losses[1][:4] == pytest.approx(losses[0][:4], rel=1e-3)  # the fourth is replayed
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # sums in no fixed order, which grow apart


@pytest.mark.parametrize("compiled", [False, True])
def test_networks__trained_together_on_a_gpu__are_those_trained_one_by_one(compiled):
    data = assemble.image_data(resolve("digits-lodm", TINY), DEVICE)
    few = data.train.subset(torch.arange(300, device=DEVICE))
    given = {"repeats": 3, "epochs": 60, "network_options": {"width": 16, "depth": 2}, "augment": Augment()}
    (one, *_), (other, *_) = (
        list(train_networks(few, 10, Streams(0, DEVICE), compute=Compute(compiled), together=together, **given))
        for together in (1, 3)
    )
    with torch.no_grad():
        scores = [network.eval()(data.test.images()) for network in (one, other)]
    assert scores[0].std() > 0.5  # it has learnt
    torch.testing.assert_close(scores[1], scores[0], rtol=0.05, atol=0.2)
