"""Shipped recipes: all load, all run at toy size, twins differ where they may; loading is strict."""

import re
from copy import deepcopy
from functools import cache

import pytest
import torch
import yaml

from condensate import Compute, UserError
from condensate.assemble import images_per_class, networks_of, training_augment
from condensate.compute import ComputeOptions
from condensate.data import KNOWN
from condensate.networks import VARIANTS
from condensate.recipe import Recipe, merge
from condensate.schema import complete
from condensate.sheets import find, resolve, shipped

# Recipes by data set and method; a lo* one goes with each but the -original ones.
SUBSETS = ("imagenette", "imagewoof", "imagemeow", "imagesquawk", "imagefruit", "imageyellow")
EXPECTED = {
    "digits": {"dm": 8, "dc": 4, "dsa": 4, "mtt": 4},
    "folder": {"dm": 6},
    "mnist": {"dm": 11, "dc": 6, "dsa": 9, "mtt": 6},
    "fashion-mnist": {"dm": 6, "dc": 6, "dsa": 9, "mtt": 6},
    "svhn": {"dm": 6, "dc": 6, "dsa": 9, "mtt": 6},
    "cifar10": {"dm": 15, "dc": 6, "dsa": 9, "mtt": 9},
    "cifar100": {"dm": 9, "dc": 6, "dsa": 9, "mtt": 9},
    "tinyimagenet": {"dm": 9, "dc": 6, "dsa": 6, "mtt": 9},
    "tinyimagenet-20": {"dm": 6, "dc": 6, "dsa": 6, "mtt": 6},
    **{name: {"dm": 6, "dc": 6, "dsa": 6, "mtt": 8} for name in SUBSETS},
}
MADE_FAST = ("digits-dm", "digits-lodm", "mnist-dm-ipc1", "mnist-lodm-ipc1", "cifar10-dm-ipc1", "cifar10-lodm-ipc1")
MADE_FAST += ("folder-dm-ipc1", "folder-lodm-ipc1")
CONTINUAL = [name for name in shipped() if "-continual-" in name]
SINGLE = [name for name in shipped() if name not in CONTINUAL]
NAME = re.compile(r"(?P<data>.+?)-(?P<lo>lo)?(?P<method>dm|dc|dsa|mtt)(-ipc(?P<ipc>\d+))?(?P<suffix>-.+)?")


@cache
def loaded(name: str) -> Recipe:
    return resolve(name)


def part(name: str, which: str) -> str | None:
    found = NAME.fullmatch(name)
    assert found, name
    return found[which]


def test_shipped__as_many_as_counted():
    found: dict[str, dict[str, int]] = {}
    for name in SINGLE:
        of_data = found.setdefault(str(part(name, "data")), {})
        of_data[str(part(name, "method"))] = of_data.get(str(part(name, "method")), 0) + 1
    assert found == EXPECTED
    assert len(CONTINUAL) == 11 + 2 * 12


@pytest.mark.parametrize("name", SINGLE)
def test_shipped__complete_and_with_a_source(name):
    recipe = loaded(name)
    assert recipe.about["source"]
    assert "{" not in "".join(recipe.about.values())
    assert complete(name, recipe.values).values == recipe.values
    assert yaml.safe_load(recipe.dump()) == recipe.values
    data, ipc = recipe["data"]["name"], part(name, "ipc")
    assert data == part(name, "data")
    assert ipc is None or recipe.budget.ipc == int(ipc)
    assert "flip" not in recipe["augment"]["ops"] or data not in ("digits", "mnist", "svhn")
    assert (recipe["parameterization"]["name"] == "lowrank") == (part(name, "lo") is not None)
    reference = re.match(r"see (\S+)", recipe.about.get("published", ""))
    assert reference is None or reference[1] in shipped()


@pytest.mark.parametrize("name", [name for name in SINGLE if "-lo" in name])
def test_shipped__twins_differ_in_storage_and_at_most_learning_rate(name):
    low, base = (deepcopy(loaded(n).values) for n in (name, name.replace("-lo", "-")))
    assert low.pop("parameterization")["name"] == "lowrank"
    assert base.pop("parameterization") == {"name": "pixels"}
    for values in (low, base):
        values["condense"].pop("lr")
        values["compare"] = [row for row in values["compare"] if row not in shipped()]
    assert low == base


@pytest.mark.parametrize("name", [name for name in SINGLE if "-lo" in name and "folder" not in name])
def test_shipped__low_rank__holds_more_images_than_pixels(name):
    recipe = loaded(name)
    known = KNOWN[recipe["data"]["name"]]
    assert images_per_class(recipe, known.classes, known.shape) > recipe.budget.ipc


def test_shipped__only_fast_recipes_depart_from_the_published_schedule():
    departing = {"objective": {"updates", "batch_real"}, "condense": {"lr", "schedule", "episodes", "checkpoint"}}
    fast = {name for name in shipped() if name.endswith("-fast")}
    assert fast == {f"{name}-fast" for name in MADE_FAST}
    for name in shipped():
        recipe = loaded(name)
        published = recipe["objective"].get("updates", 1) == 1 and recipe.condense.schedule == "constant"
        assert published == (name not in fast)
        assert (recipe["start"]["name"] == "k-means") == (name in fast)
    for name in fast:
        own, base = (deepcopy(loaded(n).values) for n in (name, name.removesuffix("-fast")))
        assert own.pop("start") != base.pop("start")
        assert own.pop("compare") == [other.replace("digits-dm", "digits-dm-fast") for other in base.pop("compare")]
        if name.startswith("folder-"):  # scored sooner, too
            own.pop("evaluate"), base.pop("evaluate")
        for section, keys in departing.items():
            for key in keys:
                own[section].pop(key), base[section].pop(key)
        assert own == base


@pytest.mark.parametrize("name", [name for name in shipped() if name.endswith("-original")])
def test_shipped__original__has_no_twin_and_starts_from_real_images(name):
    assert loaded(name)["start"] == {"name": "real"}
    assert name.replace("-original", "") in shipped()
    assert not any(other.endswith("-original") and "-lo" in other for other in shipped())


def test_shipped__scored_under_dcs_augmentation__only_where_published():
    dc = {name for name in shipped() if loaded(name).evaluate.augmentation == "dc"}
    ipcs = {"dm": (10, 50), "dc": (1, 10, 50)}
    assert dc == {f"mnist-{lo}{method}-ipc{ipc}" for method in ipcs for ipc in ipcs[method] for lo in ("", "lo")}
    assert all(loaded(name).evaluate.ops == ["crop", "scale", "rotate"] for name in dc)
    assert all(loaded(name).evaluate.epochs == 1000 for name in dc)


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CONSTANTS = {
    "mnist": ([0.1307], [0.3081]),
    "fashion-mnist": ([0.2861], [0.3530]),
    "svhn": ([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "cifar100": ([0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
    "tinyimagenet": IMAGENET,
    "tinyimagenet-20": IMAGENET,
    **{f"image{name}": IMAGENET for name in ("nette", "woof", "meow", "squawk", "fruit", "yellow")},
}


@pytest.mark.parametrize("name", [name for name in SINGLE if not name.startswith(("digits", "folder"))])
def test_shipped__normalised_by_the_published_constants(name):
    data = loaded(name)["data"]
    measured = (None, None)  # whitening takes their place
    assert (data["mean"], data["std"]) == (measured if data["zca"] else CONSTANTS[data["name"]])


@pytest.mark.parametrize("network", ["alexnet-bn", "convnet-bn"])
def test_shipped__across_architectures(network):
    recipe = loaded(f"cifar10-lodm-ipc10-{network}")
    registered, options = VARIANTS[network]
    assert recipe["network"]["name"] == registered
    assert recipe["network"]["norm"] == options["norm"] == "batch"
    names = [name for name, _, _ in networks_of(recipe, (3, 32, 32), 10)]
    assert names == ["mlp", "convnet", "lenet", "alexnet", "vgg11", "resnet18"]


@pytest.mark.parametrize(
    ("name", "rank", "lr", "ops"),
    [
        ("cifar10-lodm-ipc1", 2, 1.0, 6),
        ("cifar10-lodm-ipc10", 2, 1.0, 6),
        ("cifar10-lodm-ipc50", 4, 1000.0, 6),
        ("cifar100-lodm-ipc1", 2, 1.0, 6),
        ("cifar100-lodm-ipc10", 2, 1.0, 6),
        ("mnist-lodm-ipc1", 2, 1.0, 5),
        ("mnist-lodm-ipc10", 8, 1.0, 0),
        ("mnist-lodm-ipc50", 8, 1.0, 0),
        ("tinyimagenet-lodm-ipc1", 4, 1.0, 6),
        ("tinyimagenet-lodm-ipc10", 4, 1.0, 6),
        ("svhn-lodm-ipc1", 2, 1.0, 5),
        ("imagewoof-lodm-ipc50", 8, 10.0, 6),
    ],
)
def test_shipped__recorded_settings(name, rank, lr, ops):
    recipe = loaded(name)
    assert recipe["parameterization"] == {"name": "lowrank", "rank": rank}
    assert (recipe.condense.lr, recipe.condense.momentum, recipe.condense.episodes) == (lr, 0.5, 20000)
    assert len(recipe["augment"]["ops"]) == ops
    assert recipe["objective"] == {"name": "dm", "batch_real": 256, "updates": 1}
    assert recipe["start"] == {"name": "noise", "pixel_std": None}
    assert (recipe.evaluate.repeats, recipe.evaluate.epochs, recipe["network"]["width"]) == (20, 1000, 128)


@pytest.mark.parametrize(
    ("name", "rank", "loops", "epochs", "ops"),
    [
        ("cifar10-lodc-ipc1", 2, (1, 1), 300, 0),
        ("cifar10-lodc-ipc10", 2, (10, 50), 300, 0),
        ("cifar10-lodsa-ipc1", 2, (1, 1), 1000, 6),
        ("cifar100-lodc-ipc1", 2, (1, 1), 300, 0),
        ("cifar100-lodc-ipc10", 2, (10, 50), 300, 0),
        ("cifar100-lodsa-ipc1", 2, (1, 1), 1000, 6),
        ("cifar100-lodsa-ipc10", 8, (10, 50), 1000, 6),
        ("mnist-lodc-ipc1", 2, (1, 1), 1000, 0),
        ("mnist-lodc-ipc10", 2, (10, 50), 1000, 0),
        ("mnist-lodsa-ipc1", 2, (1, 1), 1000, 5),
        ("mnist-lodsa-ipc10", 2, (10, 50), 1000, 5),
        ("mnist-lodsa-ipc50", 8, (50, 10), 1000, 5),
        ("mnist-lodc-ipc50", 2, (50, 10), 1000, 0),
        ("svhn-lodc-ipc10", 2, (10, 50), 300, 0),
    ],
)
def test_shipped__recorded_settings_of_gradient_matching(name, rank, loops, epochs, ops):
    recipe = loaded(name)
    assert recipe["parameterization"]["rank"] == rank
    assert (recipe.condense.lr, recipe.condense.episodes, recipe.evaluate.epochs) == (0.1, 1000, epochs)
    assert (recipe["objective"]["outer_loop"], recipe["objective"]["inner_loop"]) == loops
    assert len(recipe["augment"]["ops"]) == ops
    assert recipe["objective"]["distance"] == "layerwise"


@pytest.mark.parametrize(
    ("name", "steps", "window", "batch", "step_size", "lr", "lr_step", "zca"),
    [
        ("cifar10-lomtt-ipc1", 50, (2, 5), None, 0.01, 1000.0, 1e-7, False),
        ("cifar10-mtt-ipc1-original", 50, (2, 2), None, 0.01, 100.0, 1e-7, True),
        ("cifar10-mtt-ipc10-original", 30, (2, 20), 100, 0.001, 100.0, 1e-5, True),
        ("cifar10-mtt-ipc50-original", 30, (2, 40), 500, 0.001, 1000.0, 1e-5, False),
        ("cifar100-mtt-ipc1-original", 20, (3, 20), 100, 0.01, 1000.0, 1e-5, True),
        ("cifar100-mtt-ipc10-original", 20, (2, 20), 1000, 0.01, 1000.0, 1e-5, False),
        ("cifar100-mtt-ipc50-original", 80, (2, 40), 125, 0.01, 1000.0, 1e-5, True),
        ("tinyimagenet-mtt-ipc1-original", 10, (2, 10), 200, 0.01, 10000.0, 1e-4, False),
        ("tinyimagenet-mtt-ipc50-original", 20, (2, 40), 300, 0.01, 10000.0, 1e-4, False),
        ("imagefruit-mtt-ipc10-original", 20, (2, 10), 20, 0.01, 100000.0, 1e-6, False),
    ],
)
def test_shipped__recorded_settings_of_trajectory_matching(name, steps, window, batch, step_size, lr, lr_step, zca):
    recipe = loaded(name)
    objective = recipe["objective"]
    assert (objective["syn_steps"], objective["batch_syn"], objective["step_size"]) == (steps, batch, step_size)
    assert (objective["expert_epochs"], objective["max_start_epoch"]) == window
    assert (recipe.condense.lr, recipe.condense.lr_step, recipe.condense.episodes) == (lr, lr_step, 5000)
    assert (recipe["experts"]["count"], recipe["experts"]["lr"], recipe["experts"]["batch"]) == (100, 0.01, 256)
    assert recipe["data"]["zca"] is zca
    assert (recipe["data"]["mean"] is None) is zca


@pytest.mark.parametrize("name", [name for name in SINGLE if "mtt-" in name])
def test_shipped__trajectory_matching__batch_is_within_the_set(name):
    recipe = loaded(name)
    known = KNOWN[recipe["data"]["name"]]
    held = known.classes * images_per_class(recipe, known.classes, known.shape)
    assert (recipe["objective"]["batch_syn"] or 1) <= held


@pytest.mark.parametrize("name", CONTINUAL)
def test_shipped__continual__is_another_recipe_along_a_stream(name):
    recipe = loaded(name)
    data, method, steps = re.fullmatch(r"(\w+)-continual-([\w-]+)-(\d+)steps", name).groups()
    assert recipe.about["source"]
    assert complete(name, recipe.values).values == recipe.values
    assert (recipe.continual.steps, recipe.continual.orders, recipe.continual.protocol) == (int(steps), 5, "gdumb")
    assert recipe.budget.ipc == {"digits": 1, "cifar10": 10, "cifar100": 20}[data]
    assert recipe.evaluate.repeats == 3
    if method in ("random", "herding", "k-centre"):
        assert recipe["parameterization"] == {"name": "pixels"}
        assert (recipe.condense.episodes, recipe["start"]["name"]) == (0, "real" if method == "random" else method)
        return
    base = deepcopy(loaded(f"{data}-{method}" + ("" if data == "digits" else "-ipc10")).values)
    own = {key: deepcopy(content) for key, content in recipe.values.items() if key != "continual"}
    for values in (own, base):
        values["evaluate"].pop("repeats")
        values.pop("compare")
        values["objective"].pop("expert_epochs", None)
        if data == "cifar100":
            values.pop("budget")
            values["parameterization"].pop("rank", None)
            values["objective"].pop("outer_loop", None)
            values["objective"].pop("inner_loop", None)
    assert own == base
    if "lo" in method:
        images = images_per_class(recipe, KNOWN[data].classes, KNOWN[data].shape)
        assert images == {"digits": 2, "cifar10": 80, "cifar100": 80}[data]


def test_resolve__file__keys_over_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("budget: {ipc: 2}\ncondense: {lr: 1e-3, episodes: 7}\nobjective: {name: dm}\n")
    recipe = resolve(str(file))
    assert recipe.name == "mine"
    assert recipe.condense.lr == 0.001
    assert recipe["objective"] == {"name": "dm", "batch_real": 256, "updates": 1}
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
        ({"condense": {"schedule": "cosin"}}, r"condense.schedule.*'constant', 'cosine'.*cosin"),
        ({"condense": {"schedule": None}}, "condense.schedule must have a value, got null"),
        ({"objective": {"updates": "two"}}, r"objective.updates.*int.*two"),
        ({"start": {"name": "k-mean"}}, "unknown start 'k-mean'; did you mean 'k-means'"),
        ({"condense": {"lr": -1}}, r"condense.lr must be above 0.*-1"),
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


def test_resolve__compare_null__is_with_nothing(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {name: digits}\ncompare: null\n")
    assert resolve(str(file))["compare"] == []
    assert resolve("digits-lodm", {"compare": None})["compare"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", r"is not YAML: .*; correct it there; .* show RECIPE"), ("- 1\n", "must hold sections")],
)
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
    assert resolve("cifar10-lodm-ipc1")["compute"]["chunk"] is None
    assert ComputeOptions().resolve(torch.device("cpu"), 0.0, 8 * 8).chunk == Compute().chunk
    assert Compute().precision == torch.float32


def test_zca__switched_on__sets_the_stated_normalisation_aside():
    assert resolve("cifar10-lodm-ipc1")["data"]["mean"] is not None
    data = resolve("cifar10-lodm-ipc1", {"data": {"zca": True}})["data"]
    assert (data["zca"], data["mean"], data["std"]) == (True, None, None)
    assert resolve("cifar10-lodm-ipc1", {"data": {"zca": False}})["data"]["mean"] is not None
    merged = merge({"data": {"mean": [0.5], "std": [0.5]}}, {"data": {"zca": True, "path": "x"}})
    assert merged == {"data": {"mean": None, "std": None, "zca": True, "path": "x"}}


@pytest.mark.parametrize(("one", "other"), [("ipc", "bytes"), ("bytes", "ipc")])
def test_budget__one_given__takes_the_place_of_the_other(one, other):
    merged = merge({"budget": {one: None, other: 3}}, {"budget": {one: 2000}})
    assert merged == {"budget": {one: 2000, other: None}}
    assert merge({"budget": {one: 2, other: None}}, {"budget": {one: 2, other: 3}})["budget"] == {one: 2, other: 3}
    assert resolve("digits-lodm", {"budget": {"bytes": 5000}}).budget.bits(10, (1, 8, 8)) == 40000


def test_zca__with_a_normalisation_stated_beside_it__refused():
    with pytest.raises(UserError, match=r"ZCA takes the place of normalisation: drop --data\.std"):
        resolve("digits-dm", {"data": {"zca": True, "std": [0.5]}})


def test_dump__path_that_is_no_utf_8__read_as_it_was():
    recipe = resolve("digits-lodm", {"data": {"path": "/photos/\udce9"}})
    assert yaml.safe_load(recipe.dump())["data"]["path"] == "/photos/\udce9"
