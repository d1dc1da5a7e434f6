"""The whole of measured privacy at toy size: halves, records, resumed, repeated; and planted leaks found end to end."""

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from condensate import Streams, UserError, assemble, condensing, load, load_data, report
from condensate.console import Display
from condensate.evaluation import train_networks
from condensate.privacy import Record
from condensate.recipe import merge
from condensate.sessions import Session
from condensate.sheets import resolve
from condensate.studies import privacy, shadows

TOY = {
    "network": {"width": 8},
    "objective": {"batch_real": 4},
    "condense": {"episodes": 2, "checkpoint": 1},
    "evaluate": {"repeats": 1, "epochs": 2, "epochs_full": 1},
    "privacy": {"shadows": 4, "networks": 2},
    "compare": ["random", "full"],
}
CPU = torch.device("cpu")


def quiet():
    return Display(Console(file=io.StringIO()))


def study(folder, changes=None, name="digits-lodm", smoke=False):
    changes = merge(TOY, changes or {})
    return privacy.prepare(resolve(name, changes), Session(CPU, quiet(), changes, smoke, "privacy")).at(folder)


@pytest.fixture
def undrawn(monkeypatch):
    """Empty figures, for tests that do not ask for them."""
    for owner, name in ((privacy, "save_roc"), (privacy, "save_distances"), (shadows, "save_neighbours")):
        monkeypatch.setattr(owner, name, lambda drawn, path, *_: path.touch())


@pytest.fixture
def coarse(monkeypatch):
    """Intervals of few resamples, for tests that do not ask for them."""
    for name in ("measure", "among_nearest"):
        monkeypatch.setattr(privacy, name, partial(getattr(privacy, name), resamples=50))


def contents(folder):
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}
    result = json.loads((folder / "result.json").read_text())
    for row in result["rows"].values():
        row.pop("seconds")
    return found | {"result": result}


def test_run__shadow__condenses_its_half_and_records_the_whole_pool(tmp_path, monkeypatch, coarse):
    seen = {}
    original = condensing.Condensation.run

    def spy(self):
        seen[self.folder.parent.name, self.folder.name] = self.data.train.raw
        return original(self)

    monkeypatch.setattr(condensing.Condensation, "run", spy)
    run = study(tmp_path)
    result = run.run()
    pool, members = run.data.train, run.members
    assert members.shape == (4, 1297)
    for row in ("digits-lodm", "random"):
        for number in range(4):
            assert torch.equal(seen[row, f"shadow{number}"], pool.raw[members[number]])
            synthetic = load(tmp_path / row / f"shadow{number}")
            streams = Streams(0).under("shadow", number)
            trained = train_networks(
                synthetic,
                10,
                streams,
                network_options=run.recipe.options("network"),
                repeats=2,
                epochs=2,
                augment=privacy.assemble.training_augment(run.recipe),
            )
            logits = torch.stack([network.eval()(pool.images()).detach() for network in trained])
            expected = Record.of(logits, pool.labels)
            found = load_file(tmp_path / row / f"shadow{number}" / "record.safetensors")
            np.testing.assert_allclose(found["loss"].numpy(), expected.loss, rtol=1e-4)
            np.testing.assert_allclose(found["confidence"].numpy(), expected.confidence, rtol=1e-3, atol=1e-4)
            assert members[number][found["pixels.member"]].all()
            assert not members[number][found["features.other"]].any()
    assert result["rows"]["random"]["nearest"]["pixels"]["share_closer_to_a_member"]["value"] == 1.0
    assert result["rows"]["random"]["nearest"]["pixels"]["median_to_member"] < 1e-6
    assert result["rows"]["full"]["nearest"] == {}
    assert (result["rows"]["digits-lodm"]["images"], result["rows"]["digits-lodm"]["bytes"]) == (20, 2560)
    assert set(result["rows"]["full"]["attacks"]) == {"threshold", "regression", "lira"}
    assert list(result["rows"]["full"]["attacks"]["lira"]["tpr"]) == ["0.01"]
    assert not list(tmp_path.rglob("checkpoints"))
    pictures = {file.name for file in tmp_path.glob("*.png")}
    assert {"roc-lira.png", "distances-pixels.png", "nearest-digits-lodm.png", "nearest-random.png"} <= pictures


def test_run__planted__overfitted_networks_on_all_members_are_found(tmp_path):
    """Networks trained long on few images, a third of them labelled wrong: what they learnt by heart shows."""
    changes = {
        "network": {"name": "mlp", "width": 128},
        "augment": {"ops": []},
        "evaluate": {"epochs_full": 60, "lr": 0.05},
        "privacy": {"shadows": 6},
        "compare": ["full"],
    }
    run = study(tmp_path, changes, name="digits-dm")
    pool = run.data.train.subset(torch.arange(150))
    wrong = torch.randint(10, (150,), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.arange(150) % 3 == 0, wrong, pool.labels)
    kept = privacy.Split(pool.raw, labels, pool.classes, pool.mean, pool.std)
    run = privacy.replace(run, data=privacy.replace(run.data, train=kept), rows={"full": run.rows["full"]})
    run.run_shadows([("full", number) for number in range(6)])
    records = [load_file(tmp_path / "full" / f"shadow{number}" / "record.safetensors") for number in range(6)]
    record = Record.stack([Record(*(part[key].numpy() for key in shadows.RECORDED)) for part in records])
    for attack in privacy.ATTACKS.values():
        assert run.leakage(attack(record, run.members.numpy()), run.members.numpy())["auc"]["low"] > 0.6


def test_run__planted__sets_that_are_real_images_are_found_where_they_lie(tmp_path, undrawn):
    """Ten images of 648 are stored as they are: over the whole pool that is lost, among the nearest it shows."""
    changes = {
        "network": {"name": "mlp", "width": 128},
        "augment": {"ops": []},
        "evaluate": {"epochs": 150},
        "privacy": {"shadows": 8, "networks": 1},
        "compare": ["random"],
        "start": {"name": "noise"},
    }
    result = study(tmp_path, changes, name="digits-dm").run()["rows"]
    planted, noise = (result[row]["attacks"]["threshold"] for row in ("random", "digits-dm"))
    assert planted["auc"]["high"] < 0.6
    assert planted["auc_of_the_nearest"]["low"] > 0.8
    assert noise["auc_of_the_nearest"]["low"] < 0.5 < noise["auc_of_the_nearest"]["high"]


def test_run__uint8_as_the_main_storage__holds_the_images(tmp_path, undrawn, coarse):
    changes = {
        "parameterization": {"name": "uint8"},
        "start": {"name": "real"},
        "condense": {"episodes": 0},
        "compare": [],
    }
    near = study(tmp_path, changes, name="digits-dm").run()["rows"]["digits-dm"]["nearest"]["pixels"]
    assert near["median_to_member"] < 1e-2


def test_run__killed_anywhere__ends_as_if_it_was_not(tmp_path, monkeypatch, undrawn, coarse):
    alone: dict[str, object] = {"compare": []}
    study(tmp_path / "whole", alone).run()
    wanted = contents(tmp_path / "whole")
    places = [
        (condensing.Condensation, "save"),
        (shadows.Shadow, "record"),
        (shadows, "save_file"),
        (privacy, "save_roc"),
    ]
    for number, (owner, name) in enumerate(places):
        with monkeypatch.context() as patch:
            original, left = getattr(owner, name), [2]

            def stop(*a, original=original, left=left, **k):
                left[0] -= 1
                if not left[0]:
                    raise KeyboardInterrupt
                return original(*a, **k)

            patch.setattr(owner, name, stop)
            with pytest.raises(KeyboardInterrupt):
                study(tmp_path / str(number), alone).run()
        assert not (tmp_path / str(number) / "result.json").exists()
        privacy.reopen(tmp_path / str(number), CPU, quiet()).run()
        assert contents(tmp_path / str(number)) == wanted, name


def test_run__released__compared_with_training_and_test_images(tmp_path, undrawn, coarse):
    made = study(tmp_path / "first", {"compare": []})
    made.run()
    real = tmp_path / "first" / "digits-lodm" / "shadow0"
    result = study(tmp_path / "second", {"compare": [], "privacy": {"released": str(real)}}).run()
    assert set(result["released"]) == {"pixels", "features"}
    assert result["released"]["pixels"]["compared"] == 500
    assert (tmp_path / "second" / "nearest-released.png").is_file()


def test_smoke(tmp_path, coarse):
    result = study(tmp_path, {"compare": ["random-uint8", "full"]}, smoke=True).run()
    assert (result["smoke"], result["pool"], result["shadows"]) == (True, 32, 4)
    assert result["rows"]["full"]["attacks"]["lira"]["tpr"] == {}
    part = report.read(tmp_path)
    assert {picture.title for picture in part.pictures} >= {"roc lira", "distances pixels"}
    assert [len(table.rows) for table in part.summary.tables] == [9, 4]
    assert "--smoke" in part.words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": {"shadows": 5}}, "must be even and at least 4, got 5"),
        ({"privacy": {"shadows": 2}}, "must be even and at least 4, got 2"),
        ({"privacy": {"networks": 0}}, "privacy.networks must be at least 1, got 0"),
        ({"privacy": {"fprs": [0.001]}}, r"0.001 needs the scores of 10,000 non-members, got 2,594; 16 shadows"),
        ({"privacy": {"fprs": [1.5]}}, "above 0 and below 1, got 1.5"),
        ({"privacy": {"shadow": 4}}, "unknown recipe key 'privacy.shadow'; did you mean 'privacy.shadows'"),
        ({"privacy": {"released": "nowhere"}}, "no synthetic data set at .*nowhere"),
        ({"compare": ["randon"]}, "did you mean 'random'"),
        ({"compare": ["digits-lodm"]}, "cannot be compared with itself"),
        ({"data": {"zca": True}}, "not whitened"),
        ({"compare": ["cifar10-mtt-ipc1-original"]}, "row cifar10-mtt-ipc1-original: .*not whitened"),
        ({"evaluate": {"networks": ["widths"]}}, "one kind of network"),
        ({"budget": {"ipc": None, "bytes": 10}}, "less than one image of each of 10 classes"),
    ],
)
def test_prepare__mistake__named_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        study(tmp_path / "out", changes)
    assert not (tmp_path / "out").exists()


def test_reopen__another_run__named(tmp_path):
    Session(CPU, quiet(), {}).open(tmp_path, resolve("digits-lodm"), load_data("digits"))
    with pytest.raises(UserError, match="study of condensate run, not of privacy"):
        privacy.reopen(tmp_path, CPU, quiet())


def test_reopen__on_another_machine__every_row_is_computed_as_it_was_begun(tmp_path, machine):
    machine(avx512_bf16=True)
    begun = study(tmp_path, {"compute": {"precision": "auto"}, "compare": ["digits-dm", "random"]})
    machine()
    again = privacy.reopen(tmp_path, CPU, quiet())
    assert again.rows["digits-dm"]["compute"]["precision"] == "bfloat16"
    for row, recipe in begun.rows.items():
        assert again.rows[row]["compute"] == recipe["compute"]


def test_reopen__other_images_than_before__refused(tmp_path, monkeypatch):
    study(tmp_path)
    privacy.reopen(tmp_path, CPU, quiet())
    read = assemble.image_data
    monkeypatch.setattr(assemble, "image_data", lambda *a: replace(read(*a), fingerprint="of others"))
    with pytest.raises(UserError, match="begun on other images than digits has now; put those back, or begin anew"):
        privacy.reopen(tmp_path, CPU, quiet())
