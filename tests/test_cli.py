"""The command line: what users see, and what they see when they err."""

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condensate import (
    DistributionMatching,
    LowRank,
    Streams,
    SyntheticDataset,
    __version__,
    class_major,
    cli,
    load,
    load_data,
    scoring,
)
from condensate.capabilities import can_compile
from condensate.cli import main
from condensate.commands import Command
from condensate.condensing import Condensation
from condensate.sheets import shipped

QUICK = [
    "--network.width", "8", "--network.depth", "1", "--objective.batch_real", "8", "--condense.episodes", "2",
    "--evaluate.repeats", "2", "--evaluate.epochs", "1", "--compare", "[random]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, *arguments: str) -> str:
    """The one line a mistake gets; status 2 and nothing written."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("condensate: ")
    return line


def png(path, size=(8, 8), mode="RGB", value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, value // 2, 7)).save(path)


def folder_of_images(root, classes=("ant", "bee"), each=4):
    for number, name in enumerate(classes):
        for split in ("train", "test"):
            for image in range(each):
                png(root / split / name / f"{image}.png", value=40 * number + 3 * image)
    return root


def test_overview__names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("recipes", "show", "plan", "run", "experts", "evaluate"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help__lists_options_and_recipe_keys(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    if command == "run":
        for option in ("--seeds", "--device", "--threads", "--out", "--resume", "--smoke"):
            assert option in text
    if cli.COMMANDS[command].keys:
        for key in ("--data.path", "--budget.ipc", "--parameterization.rank", "--condense.lr", "--seed", "--compare"):
            assert key in text


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["continual"], ["--continual.steps 5", "--compare [random, random-uint8, herding, full, finetune]"]),
        (["continual", "digits-dm", "--continual.steps", "2"], ["--continual.steps 2"]),
        (["privacy"], ["--privacy.shadows 64", "--compare [random, random-uint8, full]"]),
        (["experts"], ["--experts.count 10"]),
        (["run", "mine.yaml"], ["--budget.ipc 7", "--network.width 24"]),
        (["run", "--seeds", "2", "mine.yaml", "--network.width", "25"], ["--budget.ipc 7", "--network.width 25"]),
        (["run", "digits-lodm", "--objective.name", "mtt"], ["--objective.syn_steps 50", "--experts.count 100"]),
        (["plan", "--objective.name", "mtt"], ["--objective.syn_steps 50"]),
    ],
)
def test_help__keys_of_the_recipe_meant__with_its_values(words, lines, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {name: digits}\nbudget: {ipc: 7}\nnetwork: {name: convnet, width: 24}\n")
    assert main([*words, "--help"]) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert all(line in said for line in lines)


def test_help__of_a_saved_set__with_the_values_it_was_made_with(capsys):
    assert main(["run", "digits-lodm", *QUICK, "--out", "here"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "here", "--evaluate.repeats", "3", "--help"]) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert {"--network.width 8", "--evaluate.repeats 3", "--evaluate.epochs 1"} <= set(said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digits-lodn"], "unknown recipe 'digits-lodn'; did you mean 'digits-lodm'"),
        (["digits-lodm", "--condense.epsodes", "3"], "did you mean 'condense.episodes'"),
    ],
)
def test_help__of_what_is_not_there__says_so_below_the_options(words, message, capsys):
    assert main(["run", *words, "--help"]) == 2
    said = capsys.readouterr()
    assert "--seeds" in said.out
    assert message in said.err


def test_recipes__lists_and_narrows(capsys):
    assert main(["recipes", "cifar10-"]) == 0
    text = capsys.readouterr().out
    assert "cifar10-lodm-ipc50" in text
    assert "mnist" not in text


def test_recipes__no_name__counts_by_data_set(capsys):
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert sum(int(line[-2]) for line in lines if len(line) > 3 and line[-2].isdigit()) == len(shipped())
    assert len(lines) < 25
    assert "svhn" in text


def test_show__prints_yaml_that_can_be_run(capsys, tmp_path):
    assert main(["show", "digits-lodm", "--condense.lr", "5e-1", "--augment.ops", "crop,scale"]) == 0
    text = capsys.readouterr().out
    assert "lr: 0.5" in text
    assert "ops: [crop, scale]" in text
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["run", "mine.yaml", "--smoke"]) == 0
    assert (tmp_path / "runs" / "mine" / "001" / "result.json").exists()


def test_plan__says_images_numbers_bytes_time_and_memory(capsys):
    assert main(["plan", "digits-lodm"]) == 0
    text = capsys.readouterr().out
    for row in ("images per class", "640", "2,560 of 2,560", "episodes", "evaluation", "memory"):
        assert row in text
    assert main(["plan", "cifar10-lodm-ipc1", "--network.width", "16"]) == 0  # no data at hand
    assert "122,880 of 122,880" in capsys.readouterr().out


def test_plan__of_a_private_set__says_epsilon_and_the_rows_it_leaves_out(capsys):
    small = ["--network.width", "8", "--network.depth", "1"]
    assert main(["plan", "digits-lodm-private", *small]) == 0
    private = capsys.readouterr().out
    assert "(epsilon, delta) = (7.97, 1e-05) for one training image" in private
    assert "Not counted" not in private
    assert main(["plan", "digits-lodm", *small, "--compare", "random,full"]) == 0
    assert "Not counted: rows it is compared with (random, full; --compare null leaves" in capsys.readouterr().out


@pytest.mark.parametrize(("recipe", "rows"), [("digits-lodm-private", False), ("digits-lodm", True)])
def test_continual__private__no_rows_of_real_images_beside_it_unless_asked(recipe: str, rows: bool, capsys):
    assert main(["continual", recipe, "--help"]) == 0
    assert ("finetune" in capsys.readouterr().out.split("--compare ")[1].splitlines()[0]) == rows


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("tiles", "said", "longer"), [("always", ", wide", "few minutes"), ("never", "", "minute or two")]
)
def test_plan__says_what_is_compiled_and_how_long_that_takes(tiles: str, said: str, longer: str, capsys):
    asked = ["--network.width", "64", "--compute.compile", "always", "--compute.tiles", tiles]
    assert main(["plan", "digits-lodm", *asked]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"compiled{said}" in text
    assert ("tiles" in text) == bool(said)
    assert f"compiling takes a {longer} more" in text


def test_run__ends_with_table_picture_and_folder(capsys, tmp_path):
    assert main(["run", "digits-lodm", *QUICK]) == 0
    captured = capsys.readouterr()
    assert "run folder: runs/digits-lodm/001" in captured.err
    for word in ("digits-lodm", "random", "accuracy", "numbers", "bytes", "images.png"):
        assert word in captured.out
    with Image.open(tmp_path / "runs/digits-lodm/001/images.png") as picture:
        assert picture.size[1] > 10 * 48


def test_run__seeds__a_folder_each_and_spread_over_seeds(capsys, tmp_path):
    assert main(["run", "digits-lodm", *QUICK, "--seeds", "2", "--seed", "5", "--out", "here"]) == 0
    assert "over seeds" in capsys.readouterr().out
    artefacts = [(tmp_path / "here" / f"seed{k}" / "synthetic.safetensors").read_bytes() for k in (5, 6)]
    assert artefacts[0] != artefacts[1]
    assert main(["run", "--resume", "here"]) == 0


def test_evaluate__saved_set_alone(capsys, tmp_path):
    assert main(["run", "digits-lodm", *QUICK, "--out", "here"]) == 0
    capsys.readouterr()
    assert (
        main(["evaluate", "here", "--evaluate.repeats", "3", "--evaluate.networks", "same,convnet", "--out", "s.json"])
        == 0
    )
    assert "convnet" in capsys.readouterr().out
    scores = json.loads((tmp_path / "s.json").read_text())["evaluation"]
    assert len(scores[0]["accuracies"]) == 3
    first = json.loads((tmp_path / "here" / "result.json").read_text())["evaluation"][0]["accuracies"]
    assert scores[0]["accuracies"][:2] == first


ZCA = [
    "digits-dm", "--network.width", "8", "--network.depth", "1", "--objective.batch_real", "8", "--data.zca", "true",
    "--condense.episodes", "2", "--condense.checkpoint", "1", "--evaluate.repeats", "2", "--evaluate.epochs", "2",
    "--evaluate.epochs_full", "1",
]  # fmt: skip


def files(folder) -> dict[str, bytes]:
    """What is the same in every run of a seed."""
    kept = [*folder.rglob("*.safetensors"), *folder.rglob("images.png")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_zca__run_with_all_rows_resumed_and_evaluated(capsys, tmp_path, monkeypatch):
    compared = ["--compare", "digits-lodm,random,random-uint8,herding,k-centre,full"]
    assert main(["run", *ZCA, *compared, "--out", "whole"]) == 0
    with monkeypatch.context() as patch:  # stopped after the first episode, its checkpoint written
        kept = Condensation.save
        patch.setattr(Condensation, "save", lambda *a: (kept(*a), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            main(["run", *ZCA, *compared, "--out", "parts"])
    assert main(["run", "--resume", "parts"]) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    results = {row: json.loads((tmp_path / row / "result.json").read_text()) for row in ("whole", "parts")}
    assert results["parts"]["evaluation"] == results["whole"]["evaluation"]
    whitening = load_data(zca=True).whitening
    side = tmp_path / "whole" / f"zca-{whitening.digest[:16]}.safetensors"
    assert results["whole"]["stored"]["side_bytes"] == side.stat().st_size
    assert results["whole"]["stored"]["tensor_bytes"] == 2560
    assert results["whole"]["data"]["preprocessing"] == load_data(zca=True).preprocessing
    full = json.loads((tmp_path / "whole/compare/full/result.json").read_text())
    assert full["stored"]["side_bytes"] == 0
    capsys.readouterr()
    for row in ("", "compare/digits-lodm", "compare/random-uint8"):  # scored alone as in the run
        assert main(["evaluate", f"whole/{row}", "--out", f"s{len(row)}.json"]) == 0
        scored = json.loads((tmp_path / f"s{len(row)}.json").read_text())["evaluation"]
        assert scored == json.loads((tmp_path / "whole" / row / "result.json").read_text())["evaluation"]


def test_zca__rows_of_real_images__are_real_images(tmp_path):
    same = [*ZCA, "--condense.episodes", "0", "--start.name", "real", "--compare", "random-uint8"]
    assert main(["run", *same, "--out", "zca"]) == 0
    assert main(["run", *same, "--data.zca", "false", "--out", "plain"]) == 0
    bytes_of = [load(tmp_path / name / "compare/random-uint8").parameterization.values for name in ("zca", "plain")]
    assert torch.equal(*bytes_of)
    pictures = load(tmp_path / "zca").pictures()
    raw = load_data().train.raw / 255
    assert float(torch.cdist(pictures.flatten(1), raw.flatten(1), p=torch.inf).amin(1).max()) < 1 / 255 / 2
    one, other = (load(tmp_path / name) for name in ("zca", "plain"))
    torch.testing.assert_close(one.pictures(), other.pictures(), rtol=0, atol=1e-5)
    assert not torch.allclose(one.images(), other.images(), atol=0.1)
    grids = [torch.from_numpy(np.array(Image.open(tmp_path / name / "images.png"))).int() for name in ("zca", "plain")]
    assert int((grids[0] - grids[1]).abs().max()) <= 1  # both halves of it


def test_zca__lowrank_is_the_best_fit_to_whitened_images(tmp_path):
    same = [*ZCA, "--condense.episodes", "0", "--start.name", "real", "--compare", "[]"]
    low = [*same, "--parameterization.name", "lowrank", "--parameterization.rank", "2", "--budget.bytes", "1280"]
    assert main(["run", *low, "--out", "low"]) == 0
    assert main(["run", *same, "--out", "pixels"]) == 0
    images, whole = (load(tmp_path / name).images().detach() for name in ("low", "pixels"))
    singular = torch.linalg.svdvals(whole)
    torch.testing.assert_close(torch.linalg.svdvals(images)[..., :2], singular[..., :2])
    torch.testing.assert_close((images - whole).square().sum((2, 3)), singular[..., 2:].square().sum(-1))


def test_zca__evaluate_on_other_images__are_seen_through_the_whitening_of_the_set(tmp_path, monkeypatch):
    folder_of_images(tmp_path / "one", each=6)
    folder_of_images(tmp_path / "two", each=5)
    for split in ("train", "test"):
        for number, path in enumerate(sorted((tmp_path / "two" / split).rglob("*.png"))):
            png(path, value=250 - 20 * number)
    few = ["--network.width", "8", "--network.depth", "1", "--condense.episodes", "0", "--compare", "[]"]
    few += ["--evaluate.repeats", "1", "--evaluate.epochs", "1", "--data.zca", "true", "--data.path", "one"]
    assert main(["run", "folder-dm-ipc1", *few, "--out", "run"]) == 0
    seen, original = [], scoring.evaluate
    monkeypatch.setattr(scoring, "evaluate", lambda *a, **k: (seen.append(a[1].images()), original(*a, **k))[1])
    monkeypatch.setattr("condensate.data.cache.fit", lambda *_: 1 / 0)  # none is fitted to the other images
    assert main(["evaluate", "run", "--data.path", "two"]) == 0
    assert main(["evaluate", "run", "--data.path", "two", "--data.zca", "true"]) == 0
    assert torch.equal(*seen)
    raw = load_data(path="two").test.raw
    expected = load("run").whitening.whiten(raw / 255)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-6)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    own = load_data(path="two", zca=True).test.images()
    assert not torch.allclose(own, expected, atol=0.01)


def test_zca__what_cannot_be__is_said(capsys, tmp_path):
    assert main(["run", *ZCA, "--compare", "[]", "--out", "here"]) == 0
    assert main(["run", *ZCA, "--compare", "[]", "--data.zca", "false", "--out", "plain"]) == 0
    capsys.readouterr()
    assert "drop --data.mean and --data.zca" in fails(
        capsys, "evaluate", "here", "--data.zca", "false", "--data.mean", "0.5"
    )
    assert main(["evaluate", "here", "--data.zca", "true"]) == 0
    capsys.readouterr()
    assert "are not whitened" in fails(capsys, "evaluate", "plain", "--data.zca", "true")
    assert "drop --data.mean (--data.mean null)" in fails(capsys, "run", *ZCA, "--data.mean", "0.5")
    assert "12,288 values" in fails(capsys, "plan", "tinyimagenet-lodm-ipc1", "--data.zca", "true")
    for path in (tmp_path / "here").glob("zca-*"):
        path.unlink()
    assert "is missing: copy zca-" in fails(capsys, "evaluate", "here")


def test_zca__plan_says_the_side_file__smoke_runs_without(capsys, tmp_path):
    assert main(["plan", "digits-lodm", "--data.zca", "true"]) == 0
    assert f"{4 * 64 * 66:,}" in capsys.readouterr().out
    assert main(["plan", "digits-lodm"]) == 0
    assert "ZCA" not in capsys.readouterr().out
    assert main(["run", "cifar10-lodm-ipc1", "--data.zca", "true", "--smoke", "--out", "here"]) == 0
    assert not list((tmp_path / "here").glob("zca-*"))
    assert "zca: false" in (tmp_path / "here" / "recipe.yaml").read_text()  # as it ran


def test_evaluate__networks_by_name_variant_and_list(capsys, tmp_path):
    changes = ["--data.size", "16", "--evaluate.repeats", "1", "--condense.episodes", "0", "--compare", "[]"]
    assert main(["run", "digits-lodm", *QUICK, *changes, "--out", "here"]) == 0
    capsys.readouterr()

    def scored(networks: str) -> list[str]:
        (tmp_path / "s.json").unlink(missing_ok=True)
        assert main(["evaluate", "here", "--evaluate.networks", networks, "--out", "s.json"]) == 0
        rows = [score["network"] for score in json.loads((tmp_path / "s.json").read_text())["evaluation"]]
        text = capsys.readouterr().out
        assert all(row in text for row in rows)
        return rows

    assert scored("convnet-d1,mlp") == ["convnet-d1", "mlp"]
    assert scored("lenet,depths,convnet-d2") == ["lenet", "convnet-d1", "convnet-d2", "convnet-d3", "convnet-d4"]
    assert "unknown network 'convnet-d11'; did you mean 'convnet-d1'?" in fails(
        capsys, "evaluate", "here", "--evaluate.networks", "mlp,convnet-d11"
    )
    assert "unknown network 'dephts'; did you mean 'depths'?" in fails(
        capsys, "evaluate", "here", "--evaluate.networks", "dephts"
    )


def test_dc_augmentation__trains_networks_and_stands_in_the_result(capsys, tmp_path):
    keys = ["--evaluate.augmentation", "dc", "--evaluate.ops", "crop,scale,rotate", "--evaluate.epochs", "2"]
    assert main(["run", "digits-dm", *QUICK, *keys, "--compare", "[full]", "--out", "here"]) == 0
    for folder in (tmp_path / "here", tmp_path / "here" / "compare" / "full"):
        (entry,) = json.loads((folder / "result.json").read_text())["evaluation"]
        assert (entry["augmentation"], entry["augment"]) == ("dc", ["crop", "scale", "rotate"])
    assert main(["evaluate", "here", "--evaluate.ops", "noise", "--out", "s.json"]) == 0
    (entry,) = json.loads((tmp_path / "s.json").read_text())["evaluation"]
    assert (entry["augmentation"], entry["augment"]) == ("dc", ["noise"])
    capsys.readouterr()
    assert "known: crop, noise, rotate, scale" in fails(capsys, "evaluate", "here", "--evaluate.ops", "flip")

    assert main(["run", "digits-dm", *QUICK, "--compare", "[]", "--out", "dsa"]) == 0
    plain = load(tmp_path / "dsa").parameterization.stored()
    assert all(torch.equal(t, plain[k]) for k, t in load(tmp_path / "here").parameterization.stored().items())


@pytest.mark.filterwarnings("default")
def test_own_folder__condensed_in_one_call(capsys, tmp_path):
    folder_of_images(tmp_path / "photos")
    changes = ["--network.width", "8", "--condense.episodes", "1", "--evaluate.epochs", "1", "--evaluate.repeats", "1"]
    assert (
        main(
            ["run", "folder-lodm-ipc1", "--data.path", "photos", *changes, "--network.depth", "2", "--compare", "null"]
        )
        == 0
    )
    assert "sampled with replacement" in capsys.readouterr().err
    assert main(["evaluate", "runs/folder-lodm-ipc1/001", "--evaluate.epochs", "1", "--evaluate.repeats", "1"]) == 0
    assert "row full" not in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_own_folder__more_images_asked_for_than_there_are__plan_says_so_too(capsys, tmp_path):
    folder_of_images(tmp_path / "photos")
    assert main(["plan", "folder-lodm-ipc10", "--data.path", "photos", "--network.width", "4"]) == 0
    assert "only 8 are there to condense" in capsys.readouterr().err


def test_mistake__a_class_named_as_the_data_set(capsys, tmp_path):
    folder_of_images(tmp_path / "photos")
    said = fails(capsys, "run", "folder-lodm-ipc1", "--data.path", "photos/train/ant")
    assert f"is it a class, and {tmp_path / 'photos/train'} the data set?" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "digits-lodm", "--seeds", "2"], "condensate run --resume here\n"),
        (["continual", "digits-lodm"], "condensate continual --resume here\n"),
        (["privacy", "digits-lodm"], "condensate privacy --resume here\n"),
    ],
)
def test_interrupted__whatever_it_is__goes_on_as_a_whole(capsys, monkeypatch, words, said):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Condensation, "condense", stop)
    assert main([*words, *QUICK, "--out", "here"]) == 130
    assert f"condensate: interrupted; go on with it: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("checkpoint", "said"), [(1, "goes on after 2 of 3"), (500, "begins anew, for it was stopped")]
)
def test_run__interrupted__says_how_to_go_on_and_where_it_does(capsys, monkeypatch, checkpoint, said):
    original = DistributionMatching.episode

    def stop(self, synthetic, number):
        if number == 2:
            raise KeyboardInterrupt
        return original(self, synthetic, number)

    with monkeypatch.context() as patch:
        patch.setattr(DistributionMatching, "episode", stop)
        keys = ["--condense.episodes", "3", "--condense.checkpoint", str(checkpoint)]
        assert main(["run", "digits-lodm", *QUICK, *keys, "--out", "here"]) == 130
    assert "condensate: interrupted; go on with it: condensate run --resume here" in capsys.readouterr().err
    assert main(["run", "--resume", "here"]) == 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "unknown command 'rum'; did you mean 'run'"),
        (["run"], "run needs a RECIPE"),
        (["run", "digits-lodn"], "unknown recipe 'digits-lodn'; did you mean 'digits-lodm'"),
        (["run", "nix"], "(or give the path of a YAML file; list: condensate recipes)"),
        (["run", "digits-lodm", "--compare", "[nix]"], "(list of recipes: condensate recipes)"),
        (["run", "digits-lodm", "--condense.epsodes", "3"], "did you mean 'condense.episodes'"),
        (["run", "digits-lodm", "--condense.episodes"], "--condense.episodes needs a value"),
        (["run", "digits-lodm", "--condense.episodes", "many"], "condense.episodes"),
        (["run", "digits-lodm", "--smok"], "arguments: --smok; did you mean --smoke?"),
        (["run", "digits-lodm", "--episodes", "10"], "did you mean --condense.episodes? recipe keys are --section.key"),
        (["run", "--episodes", "10", "digits-lodm"], "did you mean --condense.episodes?"),
        (["plan", "digits-lodm", "--lr=0.1"], "did you mean --condense.lr or --evaluate.lr?"),
        (["run", "digits-lodm", "--batch-reel", "8"], "did you mean --objective.batch_real?"),
        (["run", "digits-mtt", "--syn-steps", "8"], "did you mean --objective.syn_steps?"),
        (["run", "digits-lodm", "--objective", "mtt"], "did you mean --objective.name?"),
        (["continual", "digits-lodm", "--steps", "2"], "did you mean --continual.steps?"),
        (["run", "digits-lodm", "--frobnicate"], "arguments: --frobnicate; recipe keys are --section.key; see:"),
        (["table", "show", "--episodes", "2"], "arguments: --episodes 2; see: condensate table --help"),
        (["run", "digits-lodm", "--seeds", "0"], "at least 1"),
        (["run", "digits-lodm", "--device", "gpu"], "unknown device 'gpu'"),
        (["run", "digits-lodm", "--device", "cuda:99"], "no device cuda:99"),
        (["run", "digits-lodm", "--data.name", "digitz"], "unknown data set 'digitz'; did you mean 'digits'"),
        (["run", "digits-lodm", "--parameterization.rank", "0"], "rank must be in [1, 8]"),
        (["run", "digits-lodm", "--parameterization.rank", "4"], "the largest rank that helps is 3"),
        (["run", "digits-lodm", "--budget.bytes", "100"], "--budget.bytes 1280"),
        (["run", "digits-lodm", "--budget.bytes", "1280", "--budget.ipc", "1"], "either ipc or bytes, got 1 and 1280"),
        (["run", "digits-lodm", "--data.std", "0.5", "--data.zca", "true"], "drop --data.std"),
        (["run", "digits-lodm", "--network.depth", "9"], "the largest depth is 3"),
        (["run", "digits-lodm", "--evaluate.networks", "convnt"], "unknown network 'convnt'; did you mean 'convnet'"),
        (
            ["run", "digits-lodm", "--evaluate.networks", "mlp,depths"],
            "convnet-d4: a 8x8 image is too small for depth 4",
        ),
        (["plan", "digits-lodm", "--evaluate.networks", "vgg11"], "vgg11: a 8x8 image is too small"),
        (["run", "digits-lomtt", "--experts.epochs", "5"], "is 8, past the experts' last snapshot, of epoch 5"),
        (["run", "digits-lomtt", "--objective.batch_syn", "21"], "batch_syn is 21, but the synthetic set has 20"),
        (
            ["run", "digits-lomtt", "--experts.make", "false", "--experts.store", "s", "--network.width", "8"],
            "make them with: condensate experts digits-lomtt --network.width 8 --experts.store",
        ),
        (["run", "digits-lodm", "--condense.lr_step", "0.1"], "need an objective that learns them: mtt"),
        (["run", "digits-lodm", "--experts.count", "3"], "leave it out, or have one, objective: {name: mtt}"),
        (["experts", "digits-lodm"], "digits-lodm matches no expert trajectories; those that do:"),
        (["run", "mnist-dsa-ipc1", "--augment.ops", "[]", "--smoke"], "DSA matches augmented images, but augment.ops"),
        (["run", "digits-lodm", "--compare", "[fll]"], "unknown row to compare with 'fll'; did you mean 'full'"),
        (["run", "cifar10-dm-ipc1", "--data.path", "nowhere"], "nowhere"),
        (["run", "digits-lodm", "--condense.lr", ".nan"], "condense.lr must be above 0 and finite, got nan"),
        (["run", "digits-lodm", "--condense.checkpoint", "0"], "condense.checkpoint must be at least 1, got 0"),
        (["run", "digits-lodm", "--budget.ipc", "0"], "--budget.ipc must be at least 1, got 0"),
        (["run", "digits-lodm", "--evaluate.epochs", "0"], "evaluate.epochs must be at least 1, got 0"),
        (["run", "digits-lodm", "--evaluate.networks", "[]"], "evaluate.networks names none"),
        (["plan", "folder-lodm-ipc1"], "say which with --data.path DIR"),
        (["run", "digits-lodm", "--condense.momentum", "null"], "condense.momentum must have a value, got null"),
        (["run", "digits-lodm", "--seed", "null"], "seed must have a value, got null"),
        (["run", "digits-lodm", "--evaluate.lr", "-1"], "evaluate.lr must be above 0"),
        (["run", "digits-lodm", "--start.pixel_std", "-2", "--start.name", "noise"], "start.pixel_std must be above 0"),
        (["run", "digits-lodm", "--objective.name", "dm,x"], "unknown objective"),
        (["run", "digits-lodm", "--augment.ops", "flip,@x"], "cannot read the value"),
        (["run", "digits-lodm", "--evaluate.augmentation", "dca"], "evaluate.augmentation"),
        (
            ["run", "digits-lodm", "--evaluate.augmentation", "dc", "--evaluate.ops", "crop,cutout"],
            "unknown operator of dc augmentation 'cutout'",
        ),
        (["run", "digits-lodm", "--data.path", "2024"], "2024"),
        (["evaluate", "q[/b]"], "no synthetic data set at q[/b]"),
        (["run", "--resume", "nowhere"], "nowhere holds no run to go on with"),
        (["run", "digits-lodm", "--resume", "nowhere"], "--resume takes everything from the folder"),
        (["evaluate", "nowhere"], "no synthetic data set at nowhere"),
        (["evaluate"], "PATH"),
        (["show", "nowhere.yaml"], "no recipe file nowhere.yaml"),
        (["plan", "digits-lodm", "--threads", "x"], "whole number"),
        (["table", "run", "--minutes", "0", "digits", "--data", "nowhere"], "no folder nowhere of data sets"),
    ],
)
def test_mistake__one_line_status_2_nothing_written(arguments, message, capsys, tmp_path):
    assert message in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_mistake__out_folder_in_use(capsys, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").touch()
    assert "used is in use" in fails(capsys, "run", "digits-lodm", "--out", "used")
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["a"]


def broken(root, what: str):
    """A folder of images with one thing wrong."""
    folder_of_images(root)
    if what == "empty class":
        (root / "train" / "cow").mkdir()
        png(root / "test" / "cow" / "0.png")
    elif what == "not an image":
        (root / "train" / "ant" / "x.png").write_text("no image")
    elif what == "sizes":
        png(root / "train" / "ant" / "x.png", size=(9, 8))
    elif what == "channels":
        png(root / "train" / "ant" / "x.png", mode="L")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty class", "cow"),
        ("not an image", "x.png"),
        ("sizes", "--data.size"),
        ("channels", "--data.channels"),
    ],
)
def test_mistake__images(what, message, capsys, tmp_path):
    broken(tmp_path / "photos", what)
    assert message in fails(capsys, "run", "folder-lodm-ipc1", "--data.path", "photos")
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "foreign"])
def test_mistake__artefact(damage, capsys, tmp_path):
    stored = LowRank(4, (1, 8, 8), rank=1)
    stored.reset_(Streams(0)("x"))
    file = tmp_path / "a.safetensors"
    SyntheticDataset(stored, class_major(2, 2)).save(file)
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, file)
    else:
        file.write_bytes(file.read_bytes()[:-9] if damage == "truncated" else b"garbage")
    expected = "not of condensate" if damage == "foreign" else "damaged"
    assert expected in fails(capsys, "evaluate", str(file))


def test_mistake__data_of_another_shape(capsys, tmp_path):
    assert main(["run", "digits-lodm", *QUICK, "--out", "here"]) == 0
    capsys.readouterr()
    folder_of_images(tmp_path / "photos")
    assert "name the data it was made of with --data.path" in fails(
        capsys, "evaluate", "here", "--data.path", "photos", "--data.mean", "null", "--data.std", "null"
    )


def test_mistake__classes_in_another_order(capsys, tmp_path):
    folder_of_images(tmp_path / "one", classes=("ant", "bee"))
    changes = ["--network.width", "8", "--network.depth", "1", "--evaluate.epochs", "1", "--evaluate.repeats", "1"]
    start = ["--start.name", "real", "--condense.episodes", "0", "--compare", "[]", "--out", "here"]
    assert main(["run", "folder-dm-ipc1", "--data.path", "one", *changes, *start]) == 0
    saved = load(tmp_path / "here")
    saved.classes = ("bee", "ant")
    saved.save(tmp_path / "turned.safetensors")
    capsys.readouterr()
    said = fails(capsys, "evaluate", "turned.safetensors", "--data.path", "one")
    assert "in another order, as ant where the set has bee for class 0: give the data with the classes in the" in said


def test_bug__keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "show", Command("", lambda parser: None, lambda options, keys: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        main(["show"])


def out_of_python() -> None:
    raise MemoryError


def out_of_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 8 GiB")


@pytest.mark.parametrize(
    ("use_up", "more"),
    [
        (out_of_python, ""),
        (out_of_the_gpu, " for 20.00 GiB more"),
        (lambda: torch.empty(10**15), f" for {4 * 10**15} bytes more"),
        (lambda: torch.empty(2**62, 4), ""),
    ],
    ids=["python", "cuda", "cpu", "more than can be counted"],
)
def test_mistake__too_little_memory(use_up, more, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "show", Command("", lambda parser: None, lambda *_: use_up()))
    assert f"there is not enough memory{more}; less is needed with a smaller budget" in fails(capsys, "show")


def test_display__not_a_terminal__plain_lines(monkeypatch):
    from rich.console import Console

    from condensate import console

    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    out = io.StringIO()
    with console.Display(Console(file=out)).work("work", 10) as step:
        for done in range(1, 11):
            step(done, "loss 3")
    lines = out.getvalue().splitlines()
    assert lines[0] == "work: 2 of 10, 0.1/s, 80 s left loss 3"
    assert len(lines) == 4


def test_experts__made_finished_and_used(capsys, tmp_path):
    toy = ["--network.width", "8", "--network.depth", "1", "--objective.max_start_epoch", "2"]
    assert main(["experts", "digits-lomtt", "--store", "s", *toy, "--experts.count", "1"]) == 0
    assert "1 experts (1 made, epochs 0 to 2" in capsys.readouterr().out
    assert main(["experts", "digits-mtt", "--store", "s", *toy, "--experts.count", "2"]) == 0
    assert "2 experts (1 made, epochs 0 to 2" in capsys.readouterr().out
    run = ["run", "digits-lomtt", *toy, "--experts.count", "2", "--experts.store", "s", "--experts.make", "false"]
    rest = ["--objective.syn_steps", "2", "--condense.episodes", "1", "--evaluate.epochs", "1", "--compare", "[]"]
    assert main([*run, *rest]) == 0
    assert "digits-lomtt" in capsys.readouterr().out
    line = fails(capsys, *run, *rest, "--experts.count", "3")
    assert "holds 2 of 3 experts; finish it with: condensate experts digits-lomtt" in line
    assert "--experts.count 3" in line


def test_run__soft_labels__shown_resumed_and_evaluated(capsys, tmp_path):
    toy = ["--network.width", "8", "--network.depth", "1", "--objective.max_start_epoch", "1", "--experts.count", "1"]
    toy += [
        "--objective.syn_steps",
        "2",
        "--condense.episodes",
        "2",
        "--evaluate.repeats",
        "1",
        "--evaluate.epochs",
        "1",
    ]
    toy += ["--experts.store", "s", "--condense.lr_labels", "1", "--budget.ipc", "2", "--compare", "[]"]
    assert main(["run", "digits-lomtt", *toy, "--out", "soft"]) == 0
    assert main(["run", "--resume", "soft"]) == 0
    assert main(["evaluate", "soft", "--evaluate.networks", "same,convnet-w32", "--evaluate.epochs", "1"]) == 0
    capsys.readouterr()
    assert main(["plan", "digits-lomtt", *toy]) == 0
    taken = json.loads((tmp_path / "soft" / "result.json").read_text())["stored"]
    assert f"{taken['numbers']:,}" in capsys.readouterr().out


def test_run__objective_of_another_recipe__takes_experts_with_it(capsys, tmp_path):
    toy = ["--network.width", "8", "--network.depth", "1", "--objective.max_start_epoch", "1", "--experts.count", "1"]
    toy += ["--experts.store", "s"]
    line = fails(capsys, "run", "digits-dm", "--objective.name", "mtt", *toy, "--experts.make", "false")
    assert "condensate experts digits-dm" in line
    assert "--objective.name mtt" in line
    assert main(["experts", "digits-dm", "--objective.name", "mtt", *toy]) == 0


def test_mistake__store_of_another_kind__remedy_works(capsys, tmp_path):
    toy = ["--network.width", "8", "--network.depth", "1", "--objective.max_start_epoch", "1", "--experts.count", "1"]
    assert main(["experts", "digits-mtt", *toy, "--store", "s"]) == 0
    (own,) = (tmp_path / "s").iterdir()
    capsys.readouterr()
    line = fails(capsys, "run", "digits-mtt", *toy, "--network.width", "9", "--experts.store", str(own))
    assert "they differ in network" in line
    remedy = shlex.split(line.split("make the right ones with: condensate ")[1])
    assert main(remedy) == 0


def test_mistake__store_is_a_file_or_not_ours(capsys, tmp_path):
    (tmp_path / "afile").touch()
    assert "is a file" in fails(capsys, "run", "digits-mtt", "--experts.store", "afile", "--out", "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("[]")
    assert "is not of an expert store" in fails(capsys, "run", "digits-mtt", "--experts.store", "other")
    assert not (tmp_path / "out").exists()


def test_resume__other_threads__refused(capsys, tmp_path):
    assert main(["run", "digits-dm", *QUICK, "--out", "here"]) == 0
    capsys.readouterr()
    assert "started with 1 threads" in fails(capsys, "run", "--resume", "here", "--threads", "2")
    torch.set_num_threads(1)


@pytest.mark.parametrize("content", ["network: convnet", "objective: [dm]", "parameterization: uint8", "data:"])
@pytest.mark.parametrize("command", ["show", "plan", "experts"])
def test_mistake__a_word_in_place_of_a_section(command, content, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    said = fails(capsys, command, "mine.yaml")
    assert f"{content.split(':')[0]} must hold keys, as in " in said
    assert said.endswith("write it so, or leave it out for the defaults")


def test_evaluate__another_normalisation_than_the_sets__refused(capsys):
    assert main(["run", "digits-lodm", *QUICK, "--out", "here"]) == 0
    capsys.readouterr()
    assert "must be seen as they are: drop --data.mean" in fails(capsys, "evaluate", "here", "--data.mean", "0.9")


def test_privacy__a_folder_of_any_name__is_read_as_it_stands(capsys):
    for name in ("run #2", "2024", "a, b"):
        given = ("privacy", "digits-lodm", "--privacy.released", name)
        assert f"no synthetic data set at {Path.cwd() / name}; expected" in fails(capsys, *given)


def test_privacy__a_folder_named_as_a_shipped_recipe__the_recipe_is_meant(capsys):
    Path("digits-lodm").mkdir()
    assert "must be even" in fails(capsys, "privacy", "digits-lodm", "--privacy.shadows", "5")
