"""The whole of continual learning at toy size: budgets held, resumed, repeated, and equal to a plain restatement."""

import io
import itertools
import json
from dataclasses import replace
from shutil import rmtree

import pytest
import torch
from PIL import Image
from rich.console import Console

from condensate import LowRank, Streams, UserError, assemble, cli, condensing, load, load_data, report, runs
from condensate.capabilities import can_compile
from condensate.console import Display
from condensate.continual import load_memory
from condensate.evaluation import train_networks
from condensate.recipe import merge
from condensate.sessions import Session
from condensate.sheets import resolve, shipped
from condensate.studies import continual, memories
from condensate.studies.continual import difference, spread, summary
from condensate.studies.memories import Allowance
from condensate.training import accuracy

TOY = {
    "network": {"width": 8},
    "objective": {"batch_real": 4},
    "condense": {"episodes": 2, "checkpoint": 1},
    "evaluate": {"repeats": 2, "epochs": 2, "epochs_full": 1},
    "continual": {"steps": 3, "orders": 1},
    "compare": [],
}


def study(folder, changes=None, name="digits-continual-lodm-5steps", smoke=False):
    changes = merge(TOY, changes or {})
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), changes, smoke, "continual")
    return continual.prepare(resolve(name, changes), session).at(folder)


def contents(folder):
    """All that was computed in a folder, by file; seconds left out."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if "seconds" not in key}
        return [plain(item) for item in value] if isinstance(value, list) else value

    found = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".csv"):
            found[str(file.relative_to(folder))] = file.read_bytes()
        if file.name == "result.json":
            found[str(file.relative_to(folder))] = plain(json.loads(file.read_text()))
    return found


ROWS = ["random", "random-uint8", "herding", "k-centre", "reservoir", "reservoir-uint8", "full", "finetune"]


@pytest.mark.parametrize("protocol", ["gdumb", "replay"])
@pytest.mark.parametrize("budget", ["growing", "fixed"])
def test_run__every_row__within_the_same_budget_at_every_step(tmp_path, protocol, budget):
    changes = {
        "continual": {"protocol": protocol, "budget": budget},
        "compare": ["digits-dm", *ROWS],
        "budget": {"ipc": 2},
    }
    run = study(tmp_path, changes)
    result = run.run()
    whole = 10 * 2 * 64 * 4
    for row, found in result["rows"].items():
        seen = [point["classes_seen"] for point in found["curve"]]
        assert seen == [4, 7, 10]
        allowed = [whole * n // 10 if budget == "growing" else whole for n in seen]
        for point, most in zip(found["curve"], allowed, strict=True):
            assert point["allowed_bytes"] == most
            assert point["bytes"] <= point["allowed_bytes"]
            assert (point["images"] == 0) == (row in ("full", "finetune"))
        assert [len(nets) for nets in found["accuracies"]["0"]] == [2, 2, 2]
        assert [len(nets[0]) for nets in found["accuracies"]["0"]] == [1, 2, 3]
    last = {row: found["curve"][-1]["images"] for row, found in result["rows"].items()}
    assert last["digits-continual-lodm-5steps"] == 40
    assert last["random"] == last["herding"] == last["reservoir"] == last["digits-dm"] == 20
    assert last["random-uint8"] == last["reservoir-uint8"] == 80
    first = {row: found["curve"][0]["images"] for row, found in result["rows"].items()}
    assert first["random"] == (8 if budget == "growing" else 4 * (20 // 4))
    assert set(result["differences"]) == set(result["rows"]) - {"digits-continual-lodm-5steps"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(table) == 1 + 3 * len(result["rows"])


def test_run__experience__sees_images_of_its_own_classes_alone(tmp_path, monkeypatch):
    """What reaches the condensation of a step are the training images of its classes, numbered within it."""
    seen = []
    original = condensing.Condensation.run

    def spy(self):
        seen.append((self.data.classes, self.data.train.labels.bincount().tolist(), self.outputs))
        return original(self)

    monkeypatch.setattr(condensing.Condensation, "run", spy)
    run = study(tmp_path)
    run.run()
    counts = dict(zip(run.datasets[0].classes, run.datasets[0].train.counts().tolist(), strict=True))
    assert [classes for classes, _, _ in seen] == [("2", "8", "4", "9"), ("1", "6", "7"), ("3", "0", "5")]
    for classes, found, outputs in seen:
        assert found == [counts[name] for name in classes]
        assert outputs == 10


def test_gdumb__scores__those_of_networks_trained_on_the_saved_memory(tmp_path):
    run = study(tmp_path)
    result = run.run()
    stream, recipe = run.stream(0), run.recipe
    for step in range(3):
        memory = load_memory(tmp_path / "order0" / recipe.name / f"step{step + 1}" / "memory", stream.classes)
        networks = train_networks(
            memory,
            10,
            Streams(0).under("memory", step),
            network_options=recipe.options("network"),
            repeats=2,
            epochs=2,
            augment=continual.assemble.training_augment(recipe),
        )
        for number, network in enumerate(networks):
            tests = [memories.Union([e.data.test], stream.classes) for e in stream.experiences[: step + 1]]
            expected = [accuracy(network, test) for test in tests]
            assert result["rows"][recipe.name]["accuracies"]["0"][step][number] == expected


def test_fixed__drop__keeps_the_first_images_and_tells_the_cost(tmp_path):
    run = study(tmp_path, {"continual": {"budget": "fixed"}, "budget": {"ipc": 2}})
    result = run.run()["rows"][run.recipe.name]
    steps = [load_memory(tmp_path / "order0" / run.recipe.name / f"step{n}" / "memory") for n in (1, 2)]
    before, after = steps[0].parts[0], steps[1].parts[0]
    assert (before.per_class, after.per_class) == (10, 5)
    index = torch.arange(len(before)).view(4, 10)[:, :5].flatten()
    assert torch.equal(after.images(), before.images(index))
    costs = result["cost_of_shrinking"]
    assert [(cost["step"], cost["rule"], cost["images"]) for cost in costs] == [
        (2, "drop", [40, 20]),
        (3, "drop", [35, 28]),
    ]
    step = json.loads((tmp_path / "order0" / run.recipe.name / "step2" / "result.json").read_text())["shrinking"]
    assert len(step["before"]) == len(step["after"]) == 2


def test_fixed__recondense__older_classes_are_condensed_from_their_own_synthetic_images(tmp_path, monkeypatch):
    seen = []
    original = condensing.Condensation.run

    def spy(self):
        seen.append((self.folder.name, self.data))
        return original(self)

    monkeypatch.setattr(condensing.Condensation, "run", spy)
    run = study(tmp_path, {"continual": {"budget": "fixed", "shrink": "recondense"}, "budget": {"ipc": 2}})
    result = run.run()["rows"][run.recipe.name]
    assert [name for name, _ in seen] == ["step1", "older", "step2", "older", "step3"]
    first = load(tmp_path / "order0" / run.recipe.name / "step1")
    again = seen[1][1]
    assert torch.equal(again.train.images(), first.images().detach())
    assert again.classes == first.classes
    assert again.train.images(torch.tensor([3])).data_ptr() != again.train.raw.data_ptr()
    steps = load_memory(tmp_path / "order0" / run.recipe.name / "step3" / "memory").parts
    assert [len(part.classes) for part in steps] == [7, 3]
    assert [part.per_class for part in steps] == [4, 4]
    assert [cost["rule"] for cost in result["cost_of_shrinking"]] == ["recondense"] * 2


def test_run__killed_in_step_3_anywhere__ends_as_if_it_was_not(tmp_path, monkeypatch):
    changes = {"compare": ["random", "finetune"], "continual": {"budget": "fixed"}}
    study(tmp_path / "whole", changes).run()
    wanted = contents(tmp_path / "whole")
    places = [
        (condensing.Condensation, "save", lambda self, *a: self.folder.name == "step3"),
        (condensing, "save_grid", lambda synthetic, path: "step3" in str(path)),
        (memories, "save_memory", lambda parts, folder: "step3" in str(folder)),
        (memories.Memory, "accuracies", lambda self, network, step: step == 2),
        (memories.Memory, "rehearse", lambda self, step, *a: step == 2),
        (continual, "save_curves", lambda *a: True),
    ]
    for number, (owner, name, due) in enumerate(places):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            original, left = getattr(owner, name), [2 if name == "accuracies" else 1]

            def stop(*a, original=original, due=due, left=left, **k):
                left[0] -= due(*a)
                if left[0] <= 0:
                    raise KeyboardInterrupt
                return original(*a, **k)

            patch.setattr(owner, name, stop)
            with pytest.raises(KeyboardInterrupt):
                study(folder, changes).run()
        assert not (folder / "result.json").exists()
        continual.reopen(folder, torch.device("cpu"), Display(Console(file=io.StringIO()))).run()
        assert contents(folder) == wanted, name
        assert not list(folder.rglob("checkpoints")), name
        assert not list(folder.rglob("networks.safetensors")), name


def test_run__same_seed__same_curve_another_seed_another(tmp_path):
    first, again, other = (study(tmp_path / str(n), {"seed": seed}).run() for n, seed in enumerate((3, 3, 4)))
    name = "digits-continual-lodm-5steps"
    assert first["rows"][name]["accuracies"] == again["rows"][name]["accuracies"]
    assert list(first["orders"]) == ["3"]
    assert first["rows"][name]["accuracies"]["3"] != other["rows"][name]["accuracies"]["4"]


@pytest.mark.parametrize("method", ["mtt", "lodsa", "dc"])
def test_run__one_class_a_step__any_objective(tmp_path, method):
    """Ten steps of one class: networks still tell ten classes apart, so that gradients do not vanish."""
    experts = {"experts": {"count": 1}} if "mtt" in method else {}
    changes = {"continual": {"steps": 10}, "evaluate": {"repeats": 1, "epochs": 1}, "objective": {"batch_real": 4}}
    if "mtt" in method:
        changes["objective"] = {"syn_steps": 2, "max_start_epoch": 2}
    changes = {key: value for key, value in merge(TOY, changes).items() if key != "objective"} | {
        "objective": changes["objective"] | ({"outer_loop": 1} if "mtt" not in method else {})
    }
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), changes)
    recipe = resolve(f"digits-continual-{method}-5steps", changes | experts)
    run = continual.prepare(recipe, session).at(tmp_path)
    result = run.run()
    assert len(result["rows"][recipe.name]["curve"]) == 10
    log = [
        json.loads(line)
        for line in (tmp_path / "order0" / recipe.name / "step1" / "log.jsonl").read_text().splitlines()
    ]
    assert all(line["loss"] > 0 for line in log)
    assert not list(tmp_path.rglob("experts"))
    start = continual.assemble.start(
        run.memory(recipe.name, 0, run.stream(0)).allowance.of_classes(run.recipe, 0, 1),
        run.stream(0).experiences[0].data,
        Streams(0).under("experience", 0),
        10,
    )
    moved = load(tmp_path / "order0" / recipe.name / "step1")
    assert not torch.equal(start.images(), moved.images())


def test_run__two_jobs__the_same_numbers(tmp_path):
    changes = {"continual": {"orders": 2, "steps": 2}, "evaluate": {"repeats": 1}}
    alone, both = (study(tmp_path / str(jobs), changes).run(jobs) for jobs in (1, 2))
    name = "digits-continual-lodm-5steps"
    assert alone["rows"][name]["accuracies"] == both["rows"][name]["accuracies"]


def test_smoke__random_images_of_two_experiences(tmp_path):
    result = study(tmp_path, {"compare": ["random", "full", "finetune"]}, smoke=True).run()
    assert result["smoke"]
    assert [point["classes_seen"] for point in result["rows"]["random"]["curve"]] == [2, 4]
    part = report.read(tmp_path)
    assert [picture.title for picture in part.pictures] == ["curves"]
    assert [len(table.rows) for table in part.summary.tables] == [4, 4]
    (tmp_path / "result.json").unlink()
    assert "condensate continual --resume" in report.read(tmp_path).missing[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"continual": {"groups": [[0, 1, 2], [2, 3, 4, 5, 6, 7, 8, 9]]}},
            "overlap: class 2 is in experiences 1 and 2",
        ),
        ({"continual": {"groups": [[0, 1, 2], [4, 5, 6, 7, 8, 9]]}}, "continual.groups miss 3"),
        ({"continual": {"protocol": "icarl"}}, r"continual.protocol.*'gdumb', 'replay'.*icarl"),
        ({"continual": {"step": 3}}, "unknown recipe key 'continual.step'; did you mean 'continual.steps'"),
        (
            {"budget": {"ipc": None, "bytes": 1279}},
            "1,279 bytes holds less than one image of each of 10 classes; 1,280",
        ),
        (
            {"continual": {"steps": 11}},
            "10 classes of digits make at most 10 experiences, not 11: --continual.steps 10",
        ),
        ({"seed": -1}, "a class order needs a seed from 0"),
        ({"seed": 2**32 - 1, "continual": {"orders": 2}}, "a class order needs a seed from 0"),
        ({"data": {"zca": True}}, "data.zca is fitted to all training images"),
        ({"evaluate": {"networks": ["same", "mlp"]}}, "scores on one network"),
        ({"compare": ["randon"]}, "unknown row to compare with 'randon'; did you mean 'random'"),
        ({"compare": ["digits-continual-lodm-5steps"]}, "cannot be compared with itself"),
        ({"compare": ["random"], "budget": {"ipc": None, "bytes": 1280}}, "row random: .* 2,560 bytes would"),
        ({"compare": ["cifar10-mtt-ipc1-original"]}, "row cifar10-mtt-ipc1-original: .*zca"),
        ({"evaluate": {"networks": ["widths"]}}, "scores on one network"),
        ({"continual": {"then": [{"name": "digits", "size": "big"}]}}, "size must be a whole number, got 'big'"),
        ({"continual": {"then": [{"name": "digits", "path": 5}]}}, "path must be a folder, got 5"),
    ],
)
def test_prepare__mistake__named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        study(tmp_path / "out", changes)
    assert not (tmp_path / "out").exists()


def test_prepare__row_of_another_budget__has_that_of_the_study(tmp_path):
    result = study(tmp_path, {"compare": ["digits-dm-ipc10", "digits-lodm-ipc10"]}).run()
    assert {row: found["curve"][-1]["bytes"] for row, found in result["rows"].items()} == {
        "digits-continual-lodm-5steps": 2560,
        "digits-dm-ipc10": 2560,
        "digits-lodm-ipc10": 1920,  # rank 3: one image a class
    }


def test_prepare__soft_labels__refused(tmp_path):
    changes = {"condense": {"lr_labels": 1.0}, "compare": []}
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), changes)
    with pytest.raises(UserError, match="hard labels"):
        continual.prepare(resolve("digits-continual-mtt-5steps", changes), session)


def test_run__stopped_between_a_result_and_its_tidying__nothing_is_left(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(memories, "rmtree", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study(tmp_path).run()
    assert list(tmp_path.rglob("checkpoints"))
    continual.reopen(tmp_path, torch.device("cpu"), Display(Console(file=io.StringIO()))).run()
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
def test_run__compiled__as_many_programs_as_it_takes(tmp_path, monkeypatch):
    """A process may compile one function eight times; a study goes on."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: original(f, **k, backend="eager"))
    changes = {
        "continual": {"budget": "fixed", "steps": 10},
        "budget": {"ipc": 5},
        "compute": {"compile": "always", "chunk": 64},
        "evaluate": {"repeats": 1, "epochs": 1},
    }
    result = study(tmp_path, changes).run()
    assert len(result["rows"]["digits-continual-lodm-5steps"]["curve"]) == 10


def test_prepare__budget_that_just_fits__runs(tmp_path):
    result = study(tmp_path, {"budget": {"ipc": None, "bytes": 1280}}).run()
    assert [p["images"] for p in result["rows"]["digits-continual-lodm-5steps"]["curve"]] == [4, 7, 10]


def smoked() -> list[object]:
    """All recipes, those of ten steps as slow tests: along two experiences they do what those of five do."""
    names = [name for name in shipped() if "-continual-" in name]
    slow = {name for name in names if name.removesuffix("-10steps") + "-5steps" in names}
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in names]


@pytest.mark.parametrize("name", [*smoked(), "cifar10-lomtt-ipc10"])
def test_smoke__shipped_recipe(tmp_path, name):
    """Every shipped recipe along two toy experiences; MTT beyond the digits, too."""
    recipe = resolve(name, {"continual": {}, "compare": []})
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), {}, smoke=True)
    result = continual.prepare(recipe, session).at(tmp_path).run()
    assert [point["classes_seen"] for point in result["rows"][name]["curve"]] == [2, 4]


def test_command__rows_that_are_always_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["continual", "digits-lodm", "--smoke", "--out", "out"]) == 0
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    assert list(rows) == ["digits-lodm", "random", "random-uint8", "k-centre", "full", "finetune"]


def test_prepare__experts_not_to_be_made__named(tmp_path):
    changes = {"experts": {"make": False}, "compare": []}
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), changes)
    with pytest.raises(UserError, match="every experience has experts of its own"):
        continual.prepare(resolve("digits-continual-mtt-5steps", changes), session)


def test_reopen__a_run_of_another_kind__named(tmp_path):
    session = Session(torch.device("cpu"), Display(Console(file=io.StringIO())), {})
    session.open(tmp_path, resolve("digits-lodm"), load_data("digits"))
    with pytest.raises(UserError, match="study of condensate run, not of continual; go on with it by: condensate run"):
        continual.reopen(tmp_path, torch.device("cpu"), session.display)
    study(tmp_path / "other")
    with pytest.raises(UserError, match="of condensate continual, not of run"):
        runs.reopen(tmp_path / "other", torch.device("cpu"), session.display)


def test_allowance__by_hand():
    growing, fixed = (Allowance(1000, (4, 3, 3), kind) for kind in (False, True))
    assert [growing.per_class(step) for step in range(3)] == [100, 100, 100]
    assert [growing.memory(step) for step in range(3)] == [400, 700, 1000]
    assert [fixed.per_class(step) for step in range(3)] == [250, 142, 100]
    assert [fixed.memory(step) for step in range(3)] == [1000, 1000, 1000]


def test_check__memory_over_its_budget__is_a_bug(tmp_path):
    run = study(tmp_path)
    memory = run.memory(run.recipe.name, 0, run.stream(0))
    stored = LowRank(11, (1, 8, 8), rank=2)
    with pytest.raises(RuntimeError, match="over its budget"):
        memory.check([condensing.SyntheticDataset(stored, torch.zeros(11, dtype=torch.int64))], 0)


def test_summary__two_orders_by_hand():
    def step(seen, networks, number):
        return {
            "classes_seen": number,
            "images": number,
            "bytes": 8 * number,
            "allowed_bytes": 8 * number,
            "seen": seen,
            "networks": networks,
            "shrinking": None,
            "seconds": 1.0,
            "experts_seconds": 0.5,
        }

    orders = {
        0: [step([1.0, 0.8], [[1.0], [0.8]], 1), step([0.5, 0.3], [[0.4, 0.6], [0.2, 0.4]], 2)],
        1: [step([0.6, 0.6], [[0.6], [0.6]], 1), step([0.2, 0.4], [[0.1, 0.3], [0.3, 0.5]], 2)],
    }
    found = summary(orders)
    assert found["curve"][0]["values"] == pytest.approx([0.9, 0.6])
    assert found["curve"][1]["mean"] == pytest.approx(0.35)
    assert found["curve"][1]["pooled_std"] == pytest.approx(0.11180, abs=1e-5)
    assert found["average_incremental"]["values"] == pytest.approx([0.65, 0.45])
    assert found["forgetting"]["values"] == pytest.approx([0.9 - 0.3, 0.6 - 0.2])
    assert found["seconds"] == 6.0
    assert spread([0.5])["std"] is None


def test_difference__paired_interval_of_students_t():
    found = difference([0.5, 0.6, 0.9], [0.4, 0.4, 0.6])
    assert found["mean"] == pytest.approx(0.2)
    half = 4.30265 * 0.1 / 3**0.5
    assert (found["low"], found["high"]) == (pytest.approx(0.2 - half, abs=1e-5), pytest.approx(0.2 + half, abs=1e-5))
    assert difference([0.5], [0.4])["low"] is None


@pytest.mark.parametrize("labels", ["disjoint", "shared"])
def test_run__two_data_sets_one_after_the_other(tmp_path, monkeypatch, labels):
    """From class folders, through the command line; paths are kept whole, so that the study goes on anywhere."""
    monkeypatch.chdir(tmp_path)
    for name, shade in (("first", 0), ("second", 100)):
        for label, split, number in itertools.product("abc", ("train", "test"), range(6)):
            file = tmp_path / name / split / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), shade + 20 * "abc".index(label) + number).save(file)
    toy = ["--network.width", "8", "--network.depth", "1", "--condense.episodes", "1", "--objective.batch_real", "3"]
    toy += ["--evaluate.repeats", "1", "--evaluate.epochs", "1", "--evaluate.epochs_full", "1", "--augment.ops", "[]"]
    given = ["folder-lodm-ipc1", "--data.path", "first", *toy, "--compare", "random,full,finetune"]
    given += ["--continual.then", "[{name: second, path: second}]", "--continual.labels", labels]
    given += ["--continual.steps", "1", "--continual.orders", "1", "--out", "out"]
    assert cli.main(["continual", *given]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    names = [
        ["a", "b", "c"],
        ["second 2: a", "second 2: b", "second 2: c"] if labels == "disjoint" else ["a", "b", "c"],
    ]
    assert [sorted(experience) for experience in result["orders"]["0"]] == names
    curve = result["rows"]["random"]["curve"]
    assert [point["classes_seen"] for point in curve] == ([3, 6] if labels == "disjoint" else [3, 3])
    assert [point["images"] for point in curve] == [3, 6]
    assert (tmp_path / "out" / "curves.png").is_file()
    (tmp_path / "out" / "result.json").unlink()
    monkeypatch.chdir("/")
    again = continual.reopen(tmp_path / "out", torch.device("cpu"), Display(Console(file=io.StringIO()))).run()
    assert again["rows"]["random"]["accuracies"] == result["rows"]["random"]["accuracies"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["continual"], "continual needs a RECIPE"),
        (["continual", "digits-lodm", "--resume", "here"], "--resume takes everything from the folder"),
        (["continual", "--resume", "nowhere"], "nowhere holds no run to go on with"),
        (["continual", "digits-lodm", "--continual.groups", "[[0, 1], [1, 2]]"], "overlap: class 1"),
        (
            ["continual", "digits-lodm", "--continual.budget", "full"],
            "continual.budget: Expected one of ['growing', 'fixed']",
        ),
        (
            ["continual", "digits-lodm", "--continual.groups", "3"],
            "Expected list[list[int | str]] or null. Got value: 3",
        ),
        (["privacy", "digits-lodm", "--privacy.fprs", "0.0001"], "0.0001 needs the scores of 100,000 non-members"),
        (["run", "digits-continual-lodm-5steps"], "condensate continual digits-continual-lodm-5steps"),
        (["run", "digits-lodm", "--privacy.shadows", "4"], "condensate privacy digits-lodm"),
        (["privacy"], "privacy needs a RECIPE or the folder of a run"),
        (["privacy", "."], "holds no finished run"),
    ],
)
def test_commands__mistake__one_line(given, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(given) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_privacy_command__of_several_seeds__says_to_name_one(tmp_path, capsys):
    (tmp_path / "seed3").mkdir()
    (tmp_path / "seed3" / "synthetic.safetensors").touch()
    assert cli.main(["privacy", str(tmp_path)]) == 2
    assert f"name one of them, as in {tmp_path / 'seed3'}" in capsys.readouterr().err


def test_privacy_command__of_a_run__looks_at_its_own_set_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toy = ["--network.width", "8", "--condense.episodes", "1", "--evaluate.repeats", "1", "--evaluate.epochs", "1"]
    assert cli.main(["run", "digits-lodm", *toy, "--compare", "[]", "--out", "made"]) == 0
    assert cli.main(["privacy", "made", "--compare", "[]", "--privacy.shadows", "4", "--out", "attacked"]) == 0
    result = json.loads((tmp_path / "attacked" / "result.json").read_text())
    assert list(result["rows"]) == ["digits-lodm"]
    assert result["rows"]["digits-lodm"]["images"] == 20
    assert result["overrides"]["network"] == {"width": 8}
    assert result["released"]["pixels"]["compared"] == 500
    assert "the set named" in capsys.readouterr().out


def test_prepare__a_class_without_test_images__refused(tmp_path, monkeypatch):
    read = runs.assemble.image_data

    def without(*args):
        data = read(*args)
        return replace(data, test=data.test.subset((data.test.labels != 3).nonzero().flatten()))

    monkeypatch.setattr(runs.assemble, "image_data", without)
    with pytest.raises(
        UserError, match="scored on every class, but digits has no test images of 3; add some, or leave"
    ):
        study(tmp_path)


def test_resume__a_part_of_a_memory_is_gone__said(tmp_path):
    study(tmp_path).run()
    (tmp_path / "result.json").unlink()
    row = tmp_path / "order0" / "digits-continual-lodm-5steps"
    rmtree(row / "step3")
    (row / "step2" / "memory" / "000.safetensors").unlink()
    with pytest.raises(UserError, match=r"step2/memory holds 6 images and not the 14 it had: put back what is gone"):
        continual.reopen(tmp_path, torch.device("cpu"), Display(quiet=True)).run()


def test_reopen__on_another_machine__every_row_is_computed_as_it_was_begun(tmp_path, machine):
    machine(avx512_bf16=True)
    begun = study(tmp_path, {"compute": {"precision": "auto"}, "compare": ["digits-dm", "random"]})
    machine()
    again = continual.reopen(tmp_path, torch.device("cpu"), Display(quiet=True))
    assert again.rows["digits-dm"]["compute"]["precision"] == "bfloat16"
    for row, recipe in begun.rows.items():
        assert again.rows[row]["compute"] == recipe["compute"]


def test_reopen__other_images_than_before__refused(tmp_path, monkeypatch):
    begun = study(tmp_path)
    continual.reopen(tmp_path, torch.device("cpu"), begun.session.display)
    read = assemble.image_data
    monkeypatch.setattr(assemble, "image_data", lambda *a: replace(read(*a), fingerprint="of others"))
    with pytest.raises(UserError, match="begun on other images than digits has now; put those back, or begin anew"):
        continual.reopen(tmp_path, torch.device("cpu"), begun.session.display)
