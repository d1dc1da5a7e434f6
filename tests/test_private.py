"""Runs under differential privacy: what is refused, what is written down, and that they go on."""

import io
import json

import pytest
import torch
from rich.console import Console

from condensate import UserError, assemble, load, runs
from condensate.console import Display
from condensate.objectives import OBJECTIVES
from condensate.objectives.private import epsilon
from condensate.sessions import Session
from condensate.sheets import resolve
from condensate.summaries import of_run

NAME = "digits-lodm-private"
TINY = {
    "network": {"width": 8, "depth": 1},
    "objective": {"batch_real": 8},
    "condense": {"episodes": 6, "checkpoint": 2},
    "evaluate": {"repeats": 1, "epochs": 2},
}


def session() -> Session:
    return Session(torch.device("cpu"), Display(Console(file=io.StringIO())), TINY)


def started(folder, seed: int = 0) -> runs.Run:
    return runs.prepare(resolve(NAME, TINY), session()).at(folder, seed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": {"name": "real"}}, r"cannot start from real images.*--start\.name noise, not real"),
        ({"start": {"name": "k-centre"}}, r"--start\.name noise, not k-centre"),
        ({"data": {"mean": None}}, r"stated normalisation.*--data\.mean 0\.5 --data\.std 0\.5"),
        ({"data": {"std": None}}, "stated normalisation"),
        ({"data": {"zca": True}}, r"takes no whitening.*--data\.zca false"),
        ({"condense": {"lr_labels": 0.1}}, "need an objective that learns them"),
    ],
)
def test_recipe__what_would_see_images_beside_the_noise__refused(changes, message):
    with pytest.raises(UserError, match=message):
        resolve(NAME, changes)


def test_recipe__of_another_objective__made_private_only_with_the_rest():
    with pytest.raises(UserError, match="cannot start from real images"):
        resolve("digits-lodm", {"objective": {"name": "dm-private"}})


def test_prepare__batch_statistics__refused_before_any_work():
    recipe = resolve(NAME, {"network": {"norm": "batch"}})
    with pytest.raises(UserError, match="batch normalisation mixes"):
        runs.prepare(recipe, session())


def test_prepare__no_accountant__refused_before_any_work(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opacus.accountants", None)
    with pytest.raises(UserError, match="install opacus"):
        runs.prepare(resolve(NAME, TINY), session())


def test_recipe__shipped__promises_what_the_docs_say():
    recipe = resolve(NAME)
    data = assemble.image_data(recipe, torch.device("cpu"))
    said = assemble.guarantee(recipe, data)
    assert said["epsilon"] == pytest.approx(8.0, abs=0.1)
    assert (said["sample_rate"], said["episodes"], said["delta"]) == (1.0, 100, 1e-5)
    assert said["delta"] < 1 / len(data.train)


def test_run__says_what_it_promises_in_result_set_and_table(tmp_path):
    results = started(tmp_path).run()
    said = json.loads((tmp_path / "result.json").read_text())["privacy"]
    rate = 8 * 10 / 1297
    assert said["epsilon"] == epsilon(6.4, rate, 6, 1e-5)
    assert (said["sample_rate"], said["episodes"], said["noise_multiplier"], said["clip"]) == (rate, 6, 6.4, 4.0)
    assert load(tmp_path).about["privacy"] == said
    line = f"{NAME}: (epsilon, delta) = ({said['epsilon']:.3g}, 1e-05) for one training image"
    assert line in of_run(NAME, [results]).notes
    assert "each of 2 sets; published together, their epsilons add up" in of_run(NAME, [results, results]).notes[-1]


def test_run__no_episode__promises_nothing():
    recipe = resolve(NAME, TINY | {"condense": {"episodes": 0}})
    assert assemble.guarantee(recipe, assemble.image_data(recipe, torch.device("cpu"))) is None


def test_run__same_seed__other_bytes(tmp_path):
    for name in "ab":
        started(tmp_path / name).run()
    first, second = ((tmp_path / name / "synthetic.safetensors").read_bytes() for name in "ab")
    assert first != second


class Stopped(Exception):
    pass


def test_resume__goes_on_from_the_checkpoint_under_new_noise(tmp_path, monkeypatch):
    matching = OBJECTIVES["dm-private"]
    original, begun = matching.episode, []

    def stopping(objective, synthetic, number):
        begun.append(number)
        if number == 5 and begun.count(5) == 1:  # after the second checkpoint, of episodes 0 to 3
            raise Stopped
        return original(objective, synthetic, number)

    monkeypatch.setattr(matching, "episode", stopping)
    with pytest.raises(Stopped):
        started(tmp_path).run()
    before = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    resumed = runs.reopen(tmp_path, torch.device("cpu"), session().display).run()
    assert begun == [0, 1, 2, 3, 4, 5, 4, 5]
    after = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in after] == [0, 1, 2, 3, 4, 5]
    assert after[:4] == before[:4]
    assert after[4]["loss"] != before[4]["loss"]  # drawn anew, and what it was before is gone
    assert resumed[NAME]["privacy"]["episodes"] == 6
