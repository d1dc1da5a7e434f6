"""Runs on images held on disk: the bytes of a run on the same images in memory, whatever decodes them, and resumed."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from condensate import (
    Augment,
    Compute,
    ConvNet,
    DistributionMatching,
    GradientMatching,
    Streams,
    UserError,
    evaluation,
    planning,
    runs,
)
from condensate.console import Display
from condensate.data import Split, imagefile, load
from condensate.objectives import OBJECTIVES
from condensate.recipe import Recipe
from condensate.sessions import Session
from condensate.sheets import resolve
from condensate.studies import continual, privacy

DEVICE = torch.device("cpu")
TINY = {
    "network": {"width": 8, "depth": 1},
    "condense": {"episodes": 4, "checkpoint": 1},
    "evaluate": {"repeats": 1, "epochs": 2, "epochs_full": 1},
    "compare": [],
}
SMALL = {
    "digits-lodm": {"batch_real": 8},
    "digits-lodsa": {"batch_real": 8, "outer_loop": 2, "inner_loop": 1},
    "digits-lomtt": {"syn_steps": 2, "expert_epochs": 1, "max_start_epoch": 2},
}


def session() -> Session:
    return Session(DEVICE, Display(Console(file=io.StringIO())), {})


def tiny(name: str = "digits-lodm", **changes: object) -> Recipe:
    experts = {"experts": {"count": 1}} if "mtt" in name else {}
    return resolve(name, TINY | {"objective": SMALL[name]} | experts).with_values(**changes)


def on_disk(recipe: Recipe, workers: int) -> Recipe:
    return recipe.with_values(data={"hold": "disk", "workers": workers})


def carried_out(recipe: Recipe, folder: Path) -> dict[str, dict]:
    return runs.prepare(recipe, session()).at(folder, 0).run()


def outcome(results: dict[str, dict]) -> dict[str, tuple]:
    """What must not depend on where the images were."""
    said = ("accuracies", "network")
    return {
        row: (
            found["artefact_sha256"],
            found["stored"],
            [[score[key] for key in said] for score in found["evaluation"]],
        )
        for row, found in results.items()
    }


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", SMALL)
def test_run__on_disk__same_bytes_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(evaluation, "HELD_BYTES", 0)  # what is trained on is read batch by batch
    recipe = tiny(name, compare=["random", "herding", "k-centre", "full"] if name == "digits-lodm" else [])
    memory = outcome(carried_out(recipe, tmp_path / "memory"))
    for workers in (0, 2):
        found = carried_out(on_disk(recipe, workers), tmp_path / str(workers))
        assert outcome(found) == memory
        waits = [line["waited"] for line in log(tmp_path / str(workers))]
        assert len(waits) == 4
        assert all(0 <= wait <= line["seconds"] for wait, line in zip(waits, log(tmp_path / str(workers)), strict=True))
    assert not any("waited" in line for line in log(tmp_path / "memory"))


def test_resume__on_disk__equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe, matching = on_disk(tiny(), 1), OBJECTIVES["dm"]
    whole, original = carried_out(recipe, tmp_path / "whole"), matching.episode
    with monkeypatch.context() as patch:
        patch.setattr(matching, "episode", lambda *a: original(*a) if a[2] < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            carried_out(recipe, tmp_path / "parts")
    resumed = runs.reopen(tmp_path / "parts", DEVICE, session().display).run()
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("method", ["dm", "dc"])
def test_objective__reads_what_it_announced(method: str, norm: str, monkeypatch: pytest.MonkeyPatch):
    """Every batch of real images is the one that was expected, from the first on."""
    data = load(hold="disk", workers=1)
    network, streams, seen = ConvNet(data.shape, 10, width=4, depth=1, norm=norm), Streams(0), []
    original = Split.images

    def images(self: Split, index: torch.Tensor | None = None) -> torch.Tensor:
        assert index is not None
        seen.append(self.expects(index))
        return original(self, index)

    monkeypatch.setattr(Split, "images", images)
    options = {"batch_real": 20} if method == "dm" else {"batch_real": 20, "outer_loop": 2}
    kind = DistributionMatching if method == "dm" else GradientMatching
    matching = kind(data.train, network, Augment(["crop"]), streams, Compute(chunk=16), **options)
    synthetic = runs.assemble.start(resolve("digits-lodm"), data, streams)
    seen.clear()
    for number in (0, 1, 2, 7, 8):  # and where it is gone on with
        for _ in matching.episode(synthetic, number):
            pass
    assert seen
    assert all(seen)


def test_plan__on_disk__decodes_nothing_and_counts_no_images(monkeypatch: pytest.MonkeyPatch):
    memory = planning.plan(tiny(), DEVICE)
    monkeypatch.setattr(imagefile, "pixels", lambda *_: 1 / 0)
    recipe = on_disk(tiny(), 0)
    disk = planning.plan(recipe, DEVICE)
    same = ("shape", "classes", "images_per_class", "numbers", "bytes")
    assert [getattr(disk, key) for key in same] == [getattr(memory, key) for key in same]
    assert disk.memory_bytes - memory.memory_bytes == 1797 * 24  # the images are fewer bytes than are decoded ahead
    monkeypatch.setattr(planning, "AHEAD", 1000)
    assert planning.plan(recipe, DEVICE).memory_bytes - memory.memory_bytes == 1797 * (24 - 64) + 1000
    assert planning.plan(on_disk(tiny("digits-lomtt"), 0), DEVICE).experts.missing == 1


def test_continual__on_disk__same_as_in_memory(tmp_path: Path):
    stream = {"continual": {"steps": 2, "orders": 1}, "compare": ["random-uint8"]}
    curves = []
    for place, recipe in (("memory", tiny(**stream)), ("disk", on_disk(tiny(**stream), 1))):
        continual.prepare(recipe, session()).at(tmp_path / place).run()
        curves.append((tmp_path / place / "curves.csv").read_text())
    assert curves[0] == curves[1]


def test_privacy__on_disk__is_refused():
    with pytest.raises(UserError, match=r"compares all images with each other, in memory: --data.hold memory"):
        privacy.prepare(on_disk(tiny(), 1), session())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hold": "tape"}, r"hold.*Expected one of .*memory.*disk.*tape"),
        ({"held": "disk"}, r"unknown recipe key 'data.held'; did you mean 'data.hold'\?"),
        ({"hold": "disk", "workers": "many"}, r"workers"),
        ({"workers": 2}, r"--data.workers are for images held on disk"),
    ],
)
def test_recipe__wrong_value__is_refused(values: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        resolve("digits-lodm", {"data": values})
