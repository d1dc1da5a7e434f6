"""Runs in their folders: what is written, in which order, and that they can be stopped at any time."""

import hashlib
import io
import json
import warnings
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from rich.console import Console

from condensate import (
    DistributionMatching,
    Pixels,
    Streams,
    SyntheticDataset,
    UserError,
    assemble,
    condensing,
    load,
    records,
    rows,
    runs,
    scoring,
)
from condensate.atomic import alone_in
from condensate.console import Display
from condensate.networks import NETWORKS
from condensate.objectives import OBJECTIVES
from condensate.recipe import Recipe
from condensate.sessions import Session
from condensate.sheets import resolve, shipped

DEVICE = torch.device("cpu")
TINY = {
    "network": {"width": 8, "depth": 1},
    "objective": {"batch_real": 8},
    "condense": {"episodes": 6, "checkpoint": 2},
    "evaluate": {"repeats": 2, "epochs": 2, "epochs_full": 1},
    "compare": [],
}


def session(changes=None, smoke=False) -> Session:
    return Session(DEVICE, Display(Console(file=io.StringIO())), changes or {}, smoke)


def tiny(name: str = "digits-lodm", **changes) -> Recipe:
    return resolve(name, TINY).with_values(**changes)


def carried_out(recipe: Recipe, folder, seed: int = 0, changes: dict = TINY) -> dict:
    return runs.prepare(recipe, session(changes)).at(folder, seed).run()


def smoked_first() -> list[object]:
    """All recipes; those of which a smoke run makes what it made of one before, but for rates and numbers of steps on
    other random images of the same shape, are slow tests.
    """
    seen, found = set(), []
    for name in (name for name in shipped() if "-continual-" not in name):
        recipe = runs.smoked(resolve(name))
        kind = {section: recipe[section] for section in ("parameterization", "start", "network", "augment")}
        kind["objective"] = {key: value for key, value in recipe["objective"].items() if key != "step_size"}
        kind["condense"] = {key: recipe["condense"][key] for key in ("episodes", "schedule", "lr_labels")}
        kind["evaluate"] = {key: recipe["evaluate"][key] for key in ("augmentation", "ops")}
        text = json.dumps([runs.smoked_shape(recipe["data"]["name"]), kind], sort_keys=True)
        found.append(pytest.param(name, marks=[pytest.mark.slow] if text in seen else []))
        seen.add(text)
    return found


@pytest.mark.parametrize("name", smoked_first())
def test_smoke__every_recipe(name, tmp_path):
    recipe = resolve(name)
    results = runs.prepare(recipe, session(smoke=True)).at(tmp_path, 0).run()
    main = results[name]
    assert main["smoke"] is True
    assert 0 <= main["evaluation"][0]["mean"] <= 1
    known = runs.KNOWN.get(recipe["data"]["name"])
    shape = known.shape if known else (3, 32, 32)
    assert load(tmp_path).parameterization.shape == tuple(min(size, runs.SMOKED_SIDE) for size in shape)


def test_baseline__network_whose_features_choose__is_trained_by_a_program(monkeypatch):
    """As the one of the row ``full`` is: a row without episodes compiles nothing else."""
    ran = []
    monkeypatch.setattr(
        "torch.compile", lambda function, **_: lambda *given: ran.append(function.__qualname__) or function(*given)
    )
    monkeypatch.setattr("condensate.compute.lacking", lambda device: "")
    data = assemble.random_data((1, 8, 8), DEVICE, 10, 30)

    def chosen(when: str) -> torch.Tensor:
        row = assemble.baseline(tiny(evaluate={"compile": when, "tiles": "never", "epochs_full": 2}), "k-centre")
        return assemble.start(runs.settled(row, data, session(), False), data, Streams(0)).images().detach()

    eager, compiled = chosen("never"), chosen("always")
    assert len(ran) == 2 * -(-len(data.train) // 256)
    assert {name.split(".")[0] for name in ran} == {"MeanLoss"}
    assert torch.equal(eager, compiled)


def test_run__folder_holds_what_the_design_says(tmp_path):
    results = carried_out(
        tiny(compare=["digits-dm", "random", "random-uint8", "herding", "k-centre", "full"]), tmp_path
    )
    assert {p.name for p in tmp_path.iterdir()} == {
        "recipe.yaml", "environment.json", "chosen.json", "log.jsonl", "synthetic.safetensors", "images.png",
        "result.json", "compare",
    }  # fmt: skip
    assert list(results) == ["digits-lodm", "digits-dm", "random", "random-uint8", "herding", "k-centre", "full"]
    stored = {row: result["stored"] for row, result in results.items()}
    assert [stored[row]["images_per_class"] for row in ("digits-lodm", "digits-dm", "random", "random-uint8")] == [
        2,
        1,
        1,
        4,
    ]
    assert {stored[row]["tensor_bytes"] for row in results if row != "full"} == {2560}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == results["digits-lodm"]
    score = result["evaluation"][0]
    assert score["mean"] == pytest.approx(sum(score["accuracies"]) / 2)
    assert (score["epochs"], len(score["accuracies"])) == (2, 2)
    assert result["fraction"] == 6 / resolve("digits-lodm").condense.episodes
    assert result["overrides"] == TINY
    assert {"commit", "device", "machine", "versions", "seconds", "peak_bytes", "budget"} <= set(result)


def test_run__what_is_scored_is_what_is_saved(tmp_path):
    results = carried_out(tiny(), tmp_path)
    artefact = tmp_path / "synthetic.safetensors"
    assert results["digits-lodm"]["artefact_sha256"] == sha256(artefact.read_bytes()).hexdigest()
    data = runs.assemble.image_data(tiny(), DEVICE)
    scores = scoring.score(tiny(), load(artefact), data, Streams(0), session().display)
    assert list(scores[0].accuracies) == results["digits-lodm"]["evaluation"][0]["accuracies"]


def test_run__same_seed__same_bytes_and_scores__another_seed_not(tmp_path):
    state = torch.get_rng_state()
    first, again = carried_out(tiny(), tmp_path / "a"), carried_out(tiny(), tmp_path / "b")
    other = carried_out(tiny(), tmp_path / "c", seed=1)
    artefacts = [(tmp_path / name / "synthetic.safetensors").read_bytes() for name in "abc"]
    assert artefacts[0] == artefacts[1] != artefacts[2]
    accuracies = [run["digits-lodm"]["evaluation"] for run in (first, again, other)]
    assert accuracies[0] == accuracies[1]
    assert torch.equal(state, torch.get_rng_state())


def test_run__artefact_says_nothing_of_time_machine_or_path(tmp_path):
    carried_out(tiny(), tmp_path)
    about = load(tmp_path).about
    assert set(about) == {"recipe", "values", "versions"}
    assert about["values"]["data"]["path"] is None
    assert str(tmp_path).encode() not in (tmp_path / "synthetic.safetensors").read_bytes()


class Stopped(Exception):
    pass


FAST = {"start": {"name": "k-means"}, "objective": {"updates": 2}, "condense": {"schedule": "cosine"}}


@pytest.mark.parametrize(
    ("moment", "options"),
    [("condense", {}), ("condense", FAST), ("save", {}), ("evaluate", {}), ("result", {})],
    ids=["condense", "condense fast", "save", "evaluate", "result"],
)
def test_resume__stopped_anywhere__equals_uninterrupted(tmp_path, monkeypatch, moment, options):
    recipe = tiny(compare=["random"]).with_values(**options)
    whole = carried_out(recipe, tmp_path / "whole")

    def stop(*_, **__):
        raise Stopped

    ready = runs.prepare(recipe, session(TINY)).at(tmp_path / "parts", 0)
    with monkeypatch.context() as patch:
        if moment == "condense":  # in the sixth episode, after the second checkpoint
            matching = OBJECTIVES["dm"]
            original = matching.episode
            patch.setattr(matching, "episode", lambda *a: stop() if a[2] == 5 else original(*a))
        elif moment == "save":
            patch.setattr(condensing, "save_grid", stop)
        elif moment == "evaluate":  # after the first network
            kept = rows.Row.keep
            patch.setattr(rows.Row, "keep", lambda *a: (kept(*a), stop()))
        else:
            patch.setattr(rows.Row, "result", stop)
        with pytest.raises(Stopped):
            ready.run()
    assert not (tmp_path / "parts" / "result.json").exists()
    resumed = runs.reopen(tmp_path / "parts", DEVICE, session().display).run()
    for row in whole:
        assert resumed[row]["evaluation"] == whole[row]["evaluation"]
        assert resumed[row]["artefact_sha256"] == whole[row]["artefact_sha256"]
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "parts")
    ]
    assert [(e["episode"], e["loss"]) for e in logs[0]] == [(e["episode"], e["loss"]) for e in logs[1]]
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_resume__same_and_a_network_of_its_name__keep_their_own_scores(tmp_path, monkeypatch):
    recipe = tiny(evaluate={"networks": ["same", "convnet"]})
    whole = carried_out(recipe, tmp_path / "whole")["digits-lodm"]["evaluation"]
    ready = runs.prepare(recipe, session(TINY)).at(tmp_path / "parts", 0)
    with monkeypatch.context() as patch:  # stopped when all is scored
        patch.setattr(rows.Row, "result", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ready.run()
    resumed = runs.reopen(tmp_path / "parts", DEVICE, session().display).run()["digits-lodm"]["evaluation"]
    assert [score["network"] for score in whole] == ["same", "convnet"]
    assert whole[0]["accuracies"] != whole[1]["accuracies"]
    assert resumed == whole


def test_prepare__budget_holds_more_images_than_there_are__is_said():
    with pytest.warns(UserWarning, match=r"the budget holds 2,500 images, and only 1,\d{3} are there to condense"):
        runs.prepare(tiny(budget={"ipc": 125}), session(TINY))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs.prepare(tiny(), session(TINY))


def test_prepare__network_too_small_for_the_images__nothing_is_written(tmp_path):
    with pytest.raises(UserError, match=r"evaluate.networks: convnet-d4: .*the largest depth is 3"):
        carried_out(tiny(evaluate={"networks": ["same", "depths"]}), tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NETWORKS)
def test_run__under_any_network(name, tmp_path):
    """Matched and scored on it: its options are recipe keys."""
    network = {"name": name} | ({"norm": "batch"} if name in ("vgg11", "resnet18") else {})
    few = {"objective": {"batch_real": 2}, "condense": {"episodes": 1}, "evaluate": {"epochs": 1, "repeats": 1}}
    results = carried_out(resolve("digits-lodm", TINY | few | {"network": network, "data": {"size": 16}}), tmp_path)
    assert results["digits-lodm"]["evaluation"][0]["network"] == name


def test_resume__finished__reads_the_results(tmp_path):
    results = carried_out(tiny(), tmp_path)
    assert runs.reopen(tmp_path, DEVICE, session().display).run() == results


def test_reopen__no_run__said(tmp_path):
    with pytest.raises(UserError, match="holds no run to go on with"):
        runs.reopen(tmp_path, DEVICE, session().display)


def test_new_folder__next_free_number(tmp_path):
    assert [runs.new_folder("x", tmp_path).name for _ in range(2)] == ["001", "002"]
    (tmp_path / "x" / "017").mkdir()
    assert runs.new_folder("x", tmp_path).name == "018"


def test_check_free__in_use__refused(tmp_path):
    runs.check_free(tmp_path / "new")
    runs.check_free(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is in use: it is a file; name a folder"):
        runs.check_free(tmp_path / "file")
    with pytest.raises(UserError, match="is in use: it holds other files, and no run; name a new"):
        runs.check_free(tmp_path)
    (tmp_path / "environment.json").touch()
    with pytest.raises(UserError, match="is in use; name another, or go on with the run in it: --resume"):
        runs.check_free(tmp_path)


def test_prepare__row_unknown__nearest_named():
    with pytest.raises(UserError, match="unknown row to compare with 'randm'; did you mean 'random'"):
        runs.prepare(tiny(compare=["randm"]), session())


def test_prepare__validation_asked_for_but_not_held_out():
    with pytest.raises(UserError, match=r"hold one out with --data.validation 0.2"):
        runs.prepare(tiny(evaluate={"split": "validation"}), session())


def test_prepare__compared_recipe__takes_the_changes_but_not_the_storage():
    changes = {"condense": {"episodes": 3, "lr": 9.0}, "parameterization": {"rank": 1}, "network": {"width": 4}}
    rows = runs.prepare(resolve("digits-lodm", changes), session(changes)).rows
    twin = rows["digits-dm"]
    assert twin.condense.episodes == 3
    assert twin.condense.lr == 1.0
    assert twin["network"]["width"] == 4
    assert twin["parameterization"] == {"name": "pixels"}


def test_run__loss_not_finite__no_result(tmp_path):
    with pytest.raises(UserError, match=r"episode \d+ at condense\.lr 1e\+30; try a smaller one"):
        carried_out(tiny(condense={"lr": 1e30}), tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "synthetic.safetensors").exists()


@pytest.mark.parametrize(("lr", "told"), [(1e9, True), (1.0, False)])
def test_run__images_blown_up_under_a_finite_loss__said(tmp_path, lr, told):
    shown = io.StringIO()
    quiet = Session(DEVICE, Display(Console(file=shown)), TINY)
    runs.prepare(tiny(condense={"lr": lr}), quiet).at(tmp_path, 0).run()
    assert (f"try a smaller learning rate than --condense.lr {lr:g}" in shown.getvalue()) == told


def test_prepare__compared_with_itself__refused():
    with pytest.raises(UserError, match="digits-lodm cannot be compared with itself"):
        runs.prepare(tiny(compare=["digits-lodm"]), session())


@pytest.mark.parametrize("name", ["full", "random", "digits-lodm", "experts", "checkpoints", "compare"])
def test_file__named_like_a_baseline_or_shipped_recipe__filed_under_another_name(name, tmp_path):
    file = tmp_path / f"{name}.yaml"
    file.write_text(tiny().dump())
    recipe = resolve(str(file))
    assert recipe.name == f"{name}-file"
    assert records.fraction(recipe) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"batch_real": 0}},
        {"parameterization": {"name": "uint8", "mean": [0.0], "std": [1.0]}},
    ],
)
def test_prepare__what_cannot_run__refused_before_anything_is_written(changes):
    with pytest.raises(UserError, match=r"batch_real|nothing to condense"):
        runs.prepare(tiny(**changes), session())


def test_run__damaged_file_in_the_folder__named(tmp_path):
    carried_out(tiny(), tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result.json is damaged; delete it"):
        runs.reopen(tmp_path, DEVICE, session().display).run()


def test_evaluation__every_key_arrives(monkeypatch, tmp_path):
    seen = []
    original = scoring.evaluate
    monkeypatch.setattr(scoring, "evaluate", lambda *a, **k: (seen.append((a, k)), original(*a, **k))[1])
    changes = {
        "evaluate": {"lr": 0.02, "ops": ["crop"], "split": "validation", "epochs": 3},
        "data": {"validation": 0.5},
    }
    carried_out(tiny(compare=["full"], **changes), tmp_path)
    (main, keywords), (full, full_keywords) = seen
    data = runs.assemble.image_data(tiny(**changes), DEVICE)
    assert torch.equal(main[1].raw, data.validation.raw)
    assert torch.equal(full[0].raw, data.train.raw)
    assert (keywords["lr"], keywords["epochs"], keywords["repeats"]) == (0.02, 3, 2)
    assert full_keywords["epochs"] == 1
    assert tuple(keywords["augment"].ops) == ("crop",)
    assert keywords["network_options"]["width"] == 8


def test_condensation__every_key_arrives(monkeypatch, tmp_path):
    seen = {}
    original = condensing.condense

    def spy(synthetic, objective, **keywords):
        seen.update(keywords, ops=objective.augment.ops, batch=objective.batch_real)
        original(synthetic, objective, **keywords)

    monkeypatch.setattr(condensing, "condense", spy)
    carried_out(tiny(condense={"momentum": 0.25, "lr": 0.125}, augment={"ops": ["scale"]}), tmp_path)
    assert (seen["momentum"], seen["lr"], seen["episodes"], seen["start"]) == (0.25, 0.125, 6, 0)
    assert list(seen["ops"]) == ["scale"]
    assert seen["batch"] == 8


def test_learned_step_size__trains_networks_unless_a_rate_is_given():
    stored = Pixels(2, (1, 8, 8))
    learned = SyntheticDataset(stored, torch.arange(2), step_size=0.125)
    assert scoring.learning_rate(None, learned) == 0.125
    assert scoring.learning_rate(0.5, learned) == 0.5
    assert scoring.learning_rate(None, SyntheticDataset(stored, torch.arange(2))) == 0.01


def test_random_uint8__is_real_images_exactly(tmp_path):
    carried_out(tiny(compare=["random-uint8"]), tmp_path)
    data = runs.assemble.image_data(tiny(), DEVICE)
    stored = load(tmp_path / "compare" / "random-uint8").parameterization.values.flatten(1)
    real = {bytes(image) for image in data.train.raw.flatten(1).numpy()}
    assert all(bytes(image) in real for image in stored.numpy())


def test_resume__goes_on_from_the_checkpoint_not_from_the_start(tmp_path, monkeypatch):
    matching = OBJECTIVES["dm"]
    original, numbers = matching.episode, []

    def episode(self, synthetic, number):
        numbers.append(number)
        if numbers.count(5) == 1 and number == 5:
            raise Stopped
        return original(self, synthetic, number)

    monkeypatch.setattr(matching, "episode", episode)
    ready = runs.prepare(tiny(), session(TINY)).at(tmp_path, 0)
    with pytest.raises(Stopped):
        ready.run()
    runs.reopen(tmp_path, DEVICE, session().display).run()
    assert numbers == [0, 1, 2, 3, 4, 5, 4, 5]


MATCHED = {
    "network": {"width": 8, "depth": 1},
    "objective": {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2},
    "experts": {"count": 2},
    "condense": {"episodes": 6, "checkpoint": 2, "lr_step": 1e-3, "lr_labels": 0.5},
    "evaluate": {"repeats": 1, "epochs": 2, "epochs_full": 1},
    "budget": {"ipc": 2},
    "compare": ["digits-mtt", "random"],
}


def matched(folder, **changes) -> Recipe:
    recipe = resolve("digits-lomtt", MATCHED).with_values(experts={"store": str(folder / "store")})
    return recipe.with_values(**changes)


def test_run__missing_experts_are_made_once_and_labels_and_step_size_learned(tmp_path):
    results = carried_out(
        matched(tmp_path),
        tmp_path / "run",
        changes=MATCHED | {"experts": {"count": 2, "store": str(tmp_path / "store")}},
    )
    (store,) = (tmp_path / "store").iterdir()
    made = {file: file.stat().st_mtime_ns for file in store.glob("expert-*")}
    assert len(made) == 2
    carried_out(matched(tmp_path, experts={"make": False}, compare=[]), tmp_path / "again")
    assert made == {file: file.stat().st_mtime_ns for file in store.glob("expert-*")}
    learned = load(tmp_path / "run")
    assert learned.labels.shape == (30, 10)  # 3 images a class, where hard labels would leave room for 4
    assert not torch.equal(learned.labels, learned.labels.round())
    assert learned.step_size.item() != pytest.approx(resolve("digits-lomtt")["objective"]["step_size"])
    for row, result in results.items():
        allowed = 2 * 10 * 64 * 4 + (4 if row != "random" else 0)  # the step size, one number, is not counted
        assert result["stored"]["tensor_bytes"] <= allowed
    assert load(tmp_path / "run" / "compare" / "random").step_size is None
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step_size"] == pytest.approx(learned.step_size.item())
    assert str(tmp_path).encode() not in (tmp_path / "run" / "synthetic.safetensors").read_bytes()


def test_resume__learned_labels_and_step_size__equals_uninterrupted(tmp_path, monkeypatch):
    whole = carried_out(matched(tmp_path, compare=[]), tmp_path / "whole")
    matching = OBJECTIVES["mtt"]
    original, stopped = matching.episode, []

    def episode(self, synthetic, number):
        if number == 5 and not stopped:
            stopped.append(number)
            raise Stopped
        return original(self, synthetic, number)

    monkeypatch.setattr(matching, "episode", episode)
    with pytest.raises(Stopped):
        runs.prepare(matched(tmp_path, compare=[]), session(MATCHED)).at(tmp_path / "parts", 0).run()
    resumed = runs.reopen(tmp_path / "parts", DEVICE, session().display).run()
    assert stopped == [5]
    assert resumed["digits-lomtt"]["artefact_sha256"] == whole["digits-lomtt"]["artefact_sha256"]
    assert resumed["digits-lomtt"]["evaluation"] == whole["digits-lomtt"]["evaluation"]


def test_prepare__experts_of_other_data_or_network__not_taken(tmp_path):
    carried_out(matched(tmp_path, compare=[]), tmp_path / "run")
    changes = [{"network": {"width": 9}}, {"data": {"validation": 0.1}}, {"data": {"std": [0.5]}}]
    for change in [*changes, {"augment": {"ops": ["crop"]}}, {"experts": {"lr": 0.02}}]:
        other = matched(tmp_path, compare=[]).with_values(**change).with_values(experts={"make": False})
        with pytest.raises(UserError, match=r"no experts of this recipe in .* make them with: condensate experts"):
            runs.prepare(other, session())


def test_prepare__compared_recipe_of_another_objective__takes_what_it_knows():
    changes = {"objective": {"syn_steps": 3}, "experts": {"count": 2}, "evaluate": {"epochs": 7}}
    run = runs.prepare(resolve("digits-lomtt", changes | {"compare": ["digits-dm", "digits-mtt"]}), session(changes))
    assert run.rows["digits-dm"].evaluate.epochs == run.rows["digits-mtt"].evaluate.epochs == 7
    assert run.rows["digits-mtt"]["objective"]["syn_steps"] == 3


def test_prepare__compared_recipe__keeps_what_makes_its_name():
    changes = {"objective": {"siamese": False}}
    run = runs.prepare(resolve("digits-lodc", changes | {"compare": ["digits-dsa", "digits-dc"]}), session(changes))
    assert run.rows["digits-dsa"]["objective"]["siamese"] is True
    assert run.rows["digits-dc"]["objective"]["siamese"] is False


def test_prepare__compared_recipe_of_other_preprocessing__sees_images_its_way(monkeypatch):
    changes = {"compare": ["digits-dm"]}
    monkeypatch.setattr(runs, "resolve", lambda name, more=None: resolve(name, more).with_values(data={"zca": True}))
    run = runs.prepare(resolve("digits-lodm", changes), session())
    assert run.data["digits-dm"].whitening is not None
    assert run.data["digits-lodm"].whitening is None


def test_prepare__row_without_episodes__asks_for_no_synthetic_batch():
    changes = {"objective": {"batch_syn": 20}, "compare": ["random"]}
    runs.prepare(resolve("digits-lomtt", changes), session({"objective": {"batch_syn": 20}}))
    with pytest.raises(UserError, match=r"row digits-mtt: objective\.batch_syn is 20, but the synthetic set has 10"):
        runs.prepare(
            resolve("digits-lomtt", changes | {"compare": ["digits-mtt"]}), session({"objective": {"batch_syn": 20}})
        )


def test_result__seconds_of_all_sessions_and_of_experts_apart(tmp_path, monkeypatch):
    clock = iter(range(0, 100000, 10))
    monkeypatch.setattr(condensing.time, "monotonic", lambda: float(next(clock)))
    made = matched(tmp_path, compare=[])
    with monkeypatch.context() as patch:
        kept = rows.Row.keep
        patch.setattr(rows.Row, "keep", lambda *a: (kept(*a), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            runs.prepare(made, session(MATCHED)).at(tmp_path / "run", 0).run()
    before = json.loads((tmp_path / "run" / "checkpoints" / "seconds.json").read_text())
    result = runs.reopen(tmp_path / "run", DEVICE, session().display).run()["digits-lomtt"]
    assert result["seconds"] > before["seconds"] > 50
    assert result["experts_seconds"] == before["experts_seconds"] > 0


def test_run__another_process_in_the_folder__refused(tmp_path):
    run = runs.prepare(resolve("digits-lodm", TINY), session(TINY)).at(tmp_path, 0)
    with alone_in(tmp_path), pytest.raises(UserError, match="another process is at work in"):
        run.run()
    assert run.run()


def test_at__a_folder_of_another_run_or_with_a_process_in_it__nothing_is_touched(tmp_path):
    ready = runs.prepare(tiny(), session(TINY))
    ready.at(tmp_path, 0)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    other = runs.prepare(tiny("digits-dm"), session(TINY))
    with pytest.raises(UserError, match="another run lies in"):
        other.at(tmp_path, 0)
    with alone_in(tmp_path), pytest.raises(UserError, match="another process is at work in"):
        ready.at(tmp_path, 0)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


class Halted(BaseException):
    """Ends a run between two episodes."""


@pytest.fixture
def halted(tmp_path, monkeypatch):
    """The folder of a run that was stopped after its checkpoint."""
    original = condensing.Condensation.save

    def save(self, *args):
        original(self, *args)
        raise Halted

    with monkeypatch.context() as patch:
        patch.setattr(condensing.Condensation, "save", save)
        with pytest.raises(Halted):
            carried_out(tiny(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("left", [0, 30, -40])
def test_resume__damaged_checkpoint__named(halted, left):
    file = halted / "checkpoints" / "condense.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(UserError, match=r"condense\.safetensors is damaged; delete it to have this part done again"):
        runs.reopen(halted, DEVICE, session().display).run()
    file.unlink()
    runs.reopen(halted, DEVICE, session().display).run()


@pytest.mark.parametrize(
    ("was", "now"), [("episodes: 6", "episodes: 3"), ("rank: 2", "rank: 1"), ("lr: 1.0", "lr: 2.0")]
)
def test_resume__its_recipe_was_changed__refused(halted, was, now):
    file = halted / "recipe.yaml"
    before = file.read_text()
    file.write_text(before.replace(was, now))
    assert file.read_text() != before
    with pytest.raises(
        UserError, match=r"was begun with another recipe: its recipe\.yaml was changed; put back what it"
    ):
        runs.reopen(halted, DEVICE, session().display)
    file.write_text(before)
    runs.reopen(halted, DEVICE, session().display).run()


def test_resume__rows_it_is_compared_with__may_be_changed_and_notes_stay(tmp_path):
    carried_out(tiny(compare=[]), tmp_path)
    file = tmp_path / "recipe.yaml"
    said = "# mine\n" + file.read_text().replace("compare: []", "compare: [random]")
    file.write_text(said)
    assert set(runs.reopen(tmp_path, DEVICE, session().display).run()) == {"digits-lodm", "random"}
    assert file.read_text() == said


def test_digest__is_of_what_a_result_hangs_on():
    recipe = tiny()
    same = [{"data": {"path": "/elsewhere"}}, {"data": {"hold": "disk", "workers": 3}}, {"compare": ["full"]}]
    assert {recipe.with_values(**changes).digest for changes in same} == {recipe.digest}
    other = [{"condense": {"lr": 2.0}}, {"seed": 1}, {"data": {"validation": 0.1}}, {"evaluate": {"epochs": 3}}]
    assert len({recipe.digest, *(recipe.with_values(**changes).digest for changes in other)}) == 5


def test_resume__a_row_of_another_recipe_than_it_was_begun_with__refused(tmp_path):
    carried_out(tiny(compare=["random"]), tmp_path)
    row = tmp_path / "compare" / "random"
    (row / "result.json").unlink()
    begun = json.loads((row / "environment.json").read_text())
    begun |= {"recipe_sha256": "0" * 64, "versions": begun["versions"] | {"condensate": "0.0.9"}}
    (row / "environment.json").write_text(json.dumps(begun))
    with pytest.raises(UserError, match=r"yaml was changed, or condensate is another than 0\.0\.9; put back"):
        runs.reopen(tmp_path, DEVICE, session().display).run()


def test_prepare__more_than_the_machine_holds__said_before_anything_is_written():
    with pytest.raises(UserError, match=r"takes [\d,.]+ GiB while it is condensed, and cpu has [\d,.]+ GiB: set a sm"):
        runs.prepare(tiny(budget={"ipc": 10**9}), session(TINY))


def test_prepare__data_of_a_compared_row_cannot_be_read__names_the_row():
    with pytest.raises(UserError, match=r"row cifar10-lodm-ipc1: .*mean"):
        runs.prepare(tiny(compare=["cifar10-lodm-ipc1"]), session(TINY))


def test_reopen__on_another_machine__every_row_is_computed_as_it_was_begun(tmp_path, machine):
    """Under both seeds, though nothing of the second was begun."""
    machine(avx512_bf16=True)
    left = {"compute": {"precision": "auto"}}
    begun = runs.prepare(tiny(**left, compare=["digits-dm", "random"]), session(TINY | left))
    begun = [begun.at(tmp_path / f"seed{seed}", seed) for seed in range(2)]
    machine()
    fresh = runs.prepare(tiny(**left, compare=["digits-dm"]), session(TINY | left))
    assert fresh.rows["digits-dm"]["compute"]["precision"] == "float32"
    for seed, run in enumerate(begun):
        again = runs.reopen(tmp_path / f"seed{seed}", DEVICE, session().display)
        assert again.rows["digits-dm"]["compute"]["precision"] == "bfloat16"
        for row, recipe in run.rows.items():
            assert again.rows[row]["compute"] == recipe["compute"]


def test_reopen__begun_with_compiled_programs__without_a_compiler__says_where_to_go_on(tmp_path, machine):
    compiled = {"compute": {"compile": "always"}}
    runs.prepare(tiny(**compiled), session(TINY | compiled)).at(tmp_path, 0)
    machine(())
    with pytest.raises(
        UserError, match=r"begun with compiled programs, which need a C\+\+ compiler.*install g\+\+; go on where"
    ):
        runs.reopen(tmp_path, DEVICE, session().display)


def test_training__of_networks_that_score__chosen_once(tmp_path, machine):
    recipe, file = tiny(evaluate={"precision": "auto"}), tmp_path / "training.json"
    chosen = []
    for capabilities in ({"avx512_bf16": True}, {}):
        machine(**capabilities)
        chosen.append(session().training_chosen(recipe, (1, 8, 8), 10, 70, file, "row").evaluate)
    assert chosen[0] == chosen[1]
    assert chosen[0].precision == "bfloat16"
    file.unlink()
    assert session().training_chosen(recipe, (1, 8, 8), 10, 70, file, "row").evaluate.precision == "float32"


def test_resume__of_a_row_that_is_done__asks_for_no_compiler(tmp_path, machine):
    compiled = {"compute": {"compile": "always"}}
    run = runs.prepare(tiny(**compiled, compare=["digits-dm"]), session(TINY | compiled)).at(tmp_path, 0)
    done = {"data": {"fingerprint": run.data["digits-lodm"].fingerprint}}
    (tmp_path / "compare" / "digits-dm").mkdir(parents=True)
    for row in (tmp_path, tmp_path / "compare" / "digits-dm"):
        (row / "result.json").write_text(json.dumps(done))
        (row / "synthetic.safetensors").touch()
    machine(())
    assert set(runs.reopen(tmp_path, DEVICE, session().display).run()) == {"digits-lodm", "digits-dm"}


def test_resume__begun_before_experts_had_a_key__goes_on(tmp_path):
    """As the recipe and its digest were written then."""
    started = runs.prepare(tiny(), session(TINY)).at(tmp_path, 0)
    values = {key: value for key, value in started.recipe.anywhere().values.items() if key != "compare"}
    values["compute"] = {key: value for key, value in values["compute"].items() if key != "experts"}
    then = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    text = (tmp_path / "recipe.yaml").read_text()
    assert ", experts: auto" in text
    (tmp_path / "recipe.yaml").write_text(text.replace(", experts: auto", ""))
    begun = json.loads((tmp_path / "environment.json").read_text()) | {"recipe_sha256": then}
    (tmp_path / "environment.json").write_text(json.dumps(begun))
    assert runs.reopen(tmp_path, DEVICE, session().display).run()
    assert not (tmp_path / "chosen.json").exists()  # of one row


def test_resume__without_its_log__says_so_and_goes_on(halted):
    (halted / "log.jsonl").unlink()
    shown = io.StringIO()
    runs.reopen(halted, DEVICE, Display(Console(file=shown, width=200))).run()
    assert "2 of the 2 episodes before are not in log.jsonl; the run goes on all the same" in shown.getvalue()
    lines = [json.loads(line) for line in (halted / "log.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in lines] == [2, 3, 4, 5]


def test_resume__other_images_once_all_is_condensed__refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rows.Row, "evaluate", lambda *_: 1 / 0)  # stopped before anything is scored
        with pytest.raises(ZeroDivisionError):
            carried_out(tiny(condense={"checkpoint": 1000}), tmp_path)
    assert (tmp_path / "synthetic.safetensors").is_file()
    read = runs.assemble.image_data
    with monkeypatch.context() as patch:
        patch.setattr(runs.assemble, "image_data", lambda *a: replace(read(*a), fingerprint="of others"))
        with pytest.raises(UserError, match="begun on other images than digits has now"):
            runs.reopen(tmp_path, DEVICE, session().display)
    assert runs.reopen(tmp_path, DEVICE, session().display).run()


@pytest.mark.parametrize("stopped", [True, False])
def test_resume__other_images_than_before__refused(stopped, tmp_path, monkeypatch, request):
    folder = request.getfixturevalue("halted") if stopped else tmp_path
    if not stopped:
        carried_out(tiny(), folder)
    read = runs.assemble.image_data
    monkeypatch.setattr(runs.assemble, "image_data", lambda *a: replace(read(*a), fingerprint="of others"))
    with pytest.raises(UserError, match="other images than digits has now; put those back, or begin anew in another"):
        runs.reopen(folder, DEVICE, session().display).run()


@pytest.mark.parametrize(
    ("name", "text"),
    [("environment.json", "[]"), ("environment.json", "{}"), ("recipe.yaml", None), ("recipe.yaml", "just words")],
)
def test_reopen__damaged_description__said(halted, name, text):
    file = halted / name
    file.write_text(file.read_text()[:400] if text is None else text)
    with pytest.raises(UserError, match="holds no run to go on with"):
        runs.reopen(halted, DEVICE, session().display)


def test_resume__the_set_of_a_result_is_gone__said(tmp_path):
    carried_out(tiny(compare=["full"]), tmp_path)
    (tmp_path / "synthetic.safetensors").unlink()
    with pytest.raises(UserError, match=r"has a result\.json, but the set it is of is gone"):
        runs.reopen(tmp_path, DEVICE, session().display).run()


def test_prepare__rows_of_a_users_file__are_scored_as_it_says(tmp_path):
    file = tmp_path / "mine.yaml"
    scoring = {"split": "validation", "repeats": 1, "epochs": 3}
    file.write_text(
        json.dumps(TINY | {"budget": {"ipc": 2}, "data": {"name": "digits", "validation": 0.2}, "evaluate": scoring})
    )
    recipe = resolve(str(file), {"compare": ["random", "digits-lodm"]})
    rows = runs.prepare(recipe, session({"compare": ["random", "digits-lodm"]})).rows
    for row in rows.values():
        assert {key: row["evaluate"][key] for key in scoring} == scoring
        assert row["budget"] == {"ipc": 2, "bytes": None}
    assert rows["digits-lodm"]["network"]["width"] == 128  # how it is condensed is its own
    changed = runs.prepare(recipe, session({"evaluate": {"epochs": 4}})).rows["digits-lodm"]
    assert changed["evaluate"]["epochs"] == 4


REUSING = {"compute": {"reuse": True}}


def test_reuse__another_storage_takes_the_real_features_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    alone = carried_out(tiny(), tmp_path / "alone")["digits-lodm"]
    assert not (tmp_path / "cache" / "features").exists()
    carried_out(tiny("digits-dm", **REUSING), tmp_path / "first")
    monkeypatch.setattr(DistributionMatching, "real_features", lambda *given: pytest.fail("computed again"))
    found = carried_out(tiny(**REUSING), tmp_path / "second")["digits-lodm"]
    assert found["compute"]["reuse"]
    assert not alone["compute"]["reuse"]
    assert found["artefact_sha256"] == alone["artefact_sha256"]
    assert [score["accuracies"] for score in found["evaluation"]] == [s["accuracies"] for s in alone["evaluation"]]
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"network": {"width": 4}},
        {"augment": {"ops": ["flip"]}},
        {"objective": {"batch_real": 4}},
        {"compute": {"chunk": 32}},
        {"compute": {"precision": "bfloat16"}},
        {"data": {"validation": 0.2}},
        {"data": {"mean": [0.4], "std": [0.4]}},
    ],
    ids=str,
)
def test_reuse__what_changes_real_features__kept_apart(tmp_path, monkeypatch, changes):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    for number, given in enumerate(({}, changes)):
        recipe = tiny(**REUSING).with_values(condense={"episodes": 1}, **given)
        carried_out(recipe, tmp_path / str(number), recipe["seed"])
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


def test_reuse__an_objective_with_nothing_to_keep__runs_as_ever(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    made = tiny("digits-lodc", **REUSING).with_values(objective={"outer_loop": 1, "inner_loop": 1})
    carried_out(made.with_values(condense={"episodes": 1}), tmp_path / "run")
    assert not (tmp_path / "cache" / "features").exists()


@pytest.mark.parametrize(
    ("told", "called"),
    [
        (
            "cpu family\t: 25\nmodel\t\t: 1\nmodel name\t: A Name\n\nmodel name\t: another",
            "A Name (family 25, model 1)",
        ),
        ("model name\t: A Name\n", "A Name"),
        ("Hardware\t: a board\nmodel\t\t: 1\n", "as Python says"),
        (None, "as Python says"),
    ],
)
def test_environment__processor__family_and_model_where_they_are_told(monkeypatch, tmp_path, told, called):
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr("condensate.records.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("condensate.records.platform.processor", lambda: "as Python says")
    assert records.environment(DEVICE)["machine"]["processor"] == called
