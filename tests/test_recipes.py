"""Shipped recipes: all load, all run at toy size, twins differ where they may; loading is strict."""

import re

import pytest
import torch
import yaml

from condensate import Compute, UserError
from condensate.assemble import training_augment
from condensate.recipe import complete, find, merge, resolve, shipped

EXPECTED = {
    "digits": 4,
    "mnist": 14,
    "fashion-mnist": 6,
    "cifar10": 12,
    "cifar100": 12,
    "tinyimagenet": 4,
    "folder": 4,
}


def data_of(name: str) -> str:
    return re.sub(r"-(lo)?(dm|dc|dsa|mtt)(-ipc\d+)?$", "", name)


def test_shipped__as_many_as_counted():
    found = [data_of(name) for name in shipped()]
    assert {data: found.count(data) for data in found} == EXPECTED


@pytest.mark.parametrize("name", shipped())
def test_shipped__complete_and_with_a_source(name):
    recipe = resolve(name)
    assert recipe.about["source"]
    assert complete(name, recipe.values).values == recipe.values
    assert yaml.safe_load(recipe.dump()) == recipe.values
    assert "flip" not in recipe["augment"]["ops"] or data_of(name) not in ("digits", "mnist")


@pytest.mark.parametrize("name", [name for name in shipped() if "-lo" in name])
def test_shipped__twins_differ_in_storage_and_at_most_learning_rate(name):
    low, base = resolve(name).values, resolve(name.replace("-lo", "-")).values
    assert low.pop("parameterization")["name"] == "lowrank"
    assert base.pop("parameterization") == {"name": "pixels"}
    for values in (low, base):
        values["condense"].pop("lr")
        values["compare"] = [row for row in values["compare"] if row not in shipped()]
    assert low == base


@pytest.mark.parametrize(
    ("name", "rank", "lr", "ops"),
    [
        ("cifar10-lodm-ipc1", 2, 1.0, 6),
        ("cifar10-lodm-ipc10", 2, 1.0, 6),
        ("cifar10-lodm-ipc50", 4, 1000.0, 6),
        ("cifar100-lodm-ipc1", 2, 1.0, 6),
        ("mnist-lodm-ipc1", 2, 1.0, 5),
        ("mnist-lodm-ipc10", 8, 1.0, 0),
        ("mnist-lodm-ipc50", 8, 1.0, 0),
        ("tinyimagenet-lodm-ipc10", 4, 1.0, 6),
    ],
)
def test_shipped__recorded_settings(name, rank, lr, ops):
    recipe = resolve(name)
    assert recipe["parameterization"] == {"name": "lowrank", "rank": rank}
    assert (recipe.condense.lr, recipe.condense.momentum, recipe.condense.episodes) == (lr, 0.5, 20000)
    assert len(recipe["augment"]["ops"]) == ops
    assert recipe["objective"] == {"name": "dm", "batch_real": 256}
    assert recipe["start"] == {"name": "noise", "pixel_std": None}
    assert (recipe.evaluate.repeats, recipe.evaluate.epochs, recipe["network"]["width"]) == (20, 1000, 128)


@pytest.mark.parametrize(
    ("name", "rank", "loops", "epochs", "ops"),
    [
        ("cifar10-lodc-ipc1", 2, (1, 1), 300, 0),
        ("cifar10-lodc-ipc10", 2, (10, 50), 300, 0),
        ("cifar10-lodsa-ipc1", 2, (1, 1), 1000, 6),
        ("cifar100-lodsa-ipc10", 8, (10, 50), 1000, 6),
        ("mnist-lodc-ipc10", 2, (10, 50), 1000, 0),
        ("mnist-lodsa-ipc1", 2, (1, 1), 1000, 5),
    ],
)
def test_shipped__recorded_settings_of_gradient_matching(name, rank, loops, epochs, ops):
    recipe = resolve(name)
    assert recipe["parameterization"]["rank"] == rank
    assert (recipe.condense.lr, recipe.condense.episodes, recipe.evaluate.epochs) == (0.1, 1000, epochs)
    assert (recipe["objective"]["outer_loop"], recipe["objective"]["inner_loop"]) == loops
    assert len(recipe["augment"]["ops"]) == ops
    assert recipe["objective"]["distance"] == "layerwise"


def test_resolve__file__keys_over_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("budget: {ipc: 2}\ncondense: {lr: 1e-3, episodes: 7}\nobjective: {name: dm}\n")
    recipe = resolve(str(file))
    assert recipe.name == "mine"
    assert recipe.condense.lr == 0.001
    assert recipe["objective"] == {"name": "dm", "batch_real": 256}
    assert resolve(str(file), {"condense": {"lr": 3}}).condense.lr == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectiv": {}}, "unknown recipe section 'objectiv'; did you mean 'objective'"),
        (
            {"objective": {"batch_reel": 3}},
            "unknown recipe key 'objective.batch_reel'; did you mean 'objective.batch_real'",
        ),
        ({"objective": {"name": "dmm"}}, "unknown objective 'dmm'; did you mean 'dm'"),
        ({"parameterization": {"name": "low-rank"}}, "unknown parameterization 'low-rank'; did you mean 'lowrank'"),
        ({"network": {"name": "convent"}}, "unknown network 'convent'; did you mean 'convnet'"),
        ({"start": {"name": "reel"}}, "unknown start 'reel'; did you mean 'real'"),
        ({"augment": {"ops": ["colour"]}}, "unknown augmentation 'colour'; did you mean 'color'"),
        ({"evaluate": {"ops": ["colour"]}}, "unknown augmentation 'colour'; did you mean 'color'"),
        (
            {"evaluate": {"augmentation": "dc", "ops": ["crop", "flip"]}},
            "unknown operator of dc augmentation 'flip'; known: crop, noise, rotate, scale",
        ),
        ({"evaluate": {"augmentation": "dca"}}, r"evaluate.augmentation.*'dsa', 'dc'.*dca"),
        ({"condense": {"lr": "fast"}}, r"condense.lr.*float.*fast"),
        ({"condense": {"episodes": 2.5}}, r"condense.episodes.*int.*2.5"),
        ({"condense": {"lr": -1}}, r"lr > 0.*-1"),
        ({"condense": 3}, "condense must hold keys"),
        ({"budget": {"ipc": 1, "bytes": 5}}, None),
        ({"seed": "x"}, "seed.*int.*x"),
    ],
)
def test_resolve__mistake__one_clear_message(changes, message):
    if message is None:  # both kinds of budget: refused when it is asked for
        with pytest.raises(UserError, match="either ipc or bytes"):
            resolve("digits-lodm", changes).budget.bits(10, (1, 8, 8))
        return
    with pytest.raises(UserError, match=message):
        resolve("digits-lodm", changes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-lodn", "unknown recipe 'digits-lodn'; did you mean 'digits-lodm'"),
        ("nowhere.yaml", "no recipe file nowhere.yaml"),
    ],
)
def test_find__unknown__says_what_there_is(name, message):
    with pytest.raises(UserError, match=message):
        find(name)


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not YAML"), ("- 1\n", "must hold sections")])
def test_find__file_that_is_no_recipe__named(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        find(str(file))


def test_merge__changed_name__drops_the_keys_of_the_old_one():
    base = {"parameterization": {"name": "lowrank", "rank": 2}, "condense": {"lr": 1, "episodes": 2}}
    merged = merge(base, {"parameterization": {"name": "pixels"}, "condense": {"lr": 3}})
    assert merged == {"parameterization": {"name": "pixels"}, "condense": {"lr": 3, "episodes": 2}}
    assert base["parameterization"]["rank"] == 2


@pytest.mark.parametrize(
    ("changes", "name", "ops"),
    [
        ({}, "dsa", ["color", "crop", "cutout", "scale", "rotate"]),
        ({"ops": ["flip"]}, "dsa", ["flip"]),
        ({"augmentation": "dc"}, "dc", ["crop", "scale", "rotate"]),
        ({"augmentation": "dc", "ops": ["noise", "crop"]}, "dc", ["noise", "crop"]),
        ({"augmentation": "dc", "ops": []}, "dc", []),
    ],
)
def test_evaluate__augmentation__with_its_own_operators(changes, name, ops):
    matched = {"augment": {"ops": ["color", "crop", "cutout", "scale", "rotate"], "rotate": 3.0}}
    augment = training_augment(resolve("digits-lodm", matched | {"evaluate": changes}))
    assert (augment.name, list(augment.ops)) == (name, ops)
    assert augment.rotate == (3.0 if name == "dsa" else 45)


def test_compute__defaults_of_library_and_recipe__agree_on_chunk():
    assert resolve("cifar10-lodm-ipc1")["compute"]["chunk"] == Compute().chunk
    assert Compute().precision == torch.float32


def test_zca__switched_on__sets_the_stated_normalisation_aside():
    assert resolve("cifar10-lodm-ipc1")["data"]["mean"] is not None
    data = resolve("cifar10-lodm-ipc1", {"data": {"zca": True}})["data"]
    assert (data["zca"], data["mean"], data["std"]) == (True, None, None)
    assert resolve("cifar10-lodm-ipc1", {"data": {"zca": False}})["data"]["mean"] is not None
    merged = merge({"data": {"mean": [0.5], "std": [0.5]}}, {"data": {"zca": True, "path": "x"}})
    assert merged == {"data": {"mean": None, "std": None, "zca": True, "path": "x"}}


def test_zca__with_a_normalisation_stated_beside_it__refused():
    with pytest.raises(UserError, match=r"ZCA takes the place of normalisation: drop --data\.std"):
        resolve("digits-dm", {"data": {"zca": True, "std": [0.5]}})
