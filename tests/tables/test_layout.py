"""The cells of the tables: complete, each once, the most valuable first."""

import pytest

from condensate import UserError
from condensate.sheets import find, shipped
from condensate.tables import Cell, Profile, chosen, queue, tables

FULL, TWENTIETH = tables()["cifar10"].profile, tables()["cifar10-twentieth"].profile


@pytest.mark.parametrize("name", [table.name for table in tables().values() if table.profile])
def test_cells__all_resolve_under_their_profile(name):
    table = tables()[name]
    cells = list(table.cells())
    assert cells
    for cell in cells:
        recipe = cell.resolve()
        assert recipe.name == cell.recipe
        assert recipe["compare"] == []
        assert cell.profile is table.profile


def test_cells__main_tables_have_every_method_at_every_budget():
    for data in ("mnist", "fashion-mnist", "cifar10", "cifar100", "tinyimagenet-20"):
        found = {cell.recipe for cell in tables()[data].cells()}
        wanted = {
            f"{data}-{lo}{m}-ipc{ipc}" for lo in ("", "lo") for m in ("dc", "dsa", "dm", "mtt") for ipc in (1, 10, 50)
        }
        originals = {name for name in shipped() if name.startswith(f"{data}-") and name.endswith("-original")}
        assert found == wanted | originals


def test_cells__twentieth__departs_as_said_and_in_nothing_else():
    cell = Cell(TWENTIETH, "cifar10-lodm-ipc1")
    recipe, whole = cell.resolve().values, Cell(FULL, "cifar10-lodm-ipc1").resolve().values
    assert (recipe["condense"].pop("episodes"), whole["condense"].pop("episodes")) == (1000, 20000)
    assert [recipe["evaluate"].pop(key) for key in ("repeats", "epochs")] == [3, 300]
    assert [whole["evaluate"].pop(key) for key in ("repeats", "epochs")] == [20, 1000]
    assert recipe == whole


def test_tables__a_profile_each_so_that_full_and_fraction_never_share_a_column():
    profiles = {table.profile.name for table in tables().values() if table.profile}
    assert profiles == {"full", "twentieth", "validation"}
    for name in tables()["cost"].of:
        assert tables()[name].profile is not None


def test_variant__that_changes_nothing__is_the_recipe_itself():
    ranks = tables()["cifar10-ranks"]
    assert ranks.cell("cifar10-lodm-ipc1", variant="rank 2").path == "full/cifar10-lodm-ipc1/seed0"
    assert ranks.cell("cifar10-lodm-ipc1", variant="rank 4").path == "full/cifar10-lodm-ipc1.rank-4/seed0"
    starts = tables()["digits-starts"]
    assert starts.cell("digits-lodm", variant="real images").path == "full/digits-lodm/seed0"
    assert starts.cell("digits-lodm", variant="noise of unit variance").resolve()["start"]["pixel_std"] == 1.0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_queue__each_cell_once_and_first_seeds_first(device):
    cells = queue(device)
    assert len({cell.path for cell in cells}) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_queue__between_them_the_devices_have_every_cell():
    all_cells = {
        cell.path for table in tables().values() if table.profile for c in table.cells() for cell in table.seeds_of(c)
    }
    assert {cell.path for device in ("cpu", "cuda") for cell in queue(device)} == all_cells


def test_queue__cuda__begins_with_dm_and_lodm_of_cifar10():
    named = [cell.recipe for cell in queue("cuda")]
    assert named[:6] == [f"cifar10-{m}-ipc{ipc}" for ipc in (1, 10, 50) for m in ("dm", "lodm")]
    first = {method: named.index(f"cifar10-lo{method}-ipc1") for method in ("dm", "dsa", "dc", "mtt")}
    assert first["dm"] < first["dsa"] < first["dc"] < first["mtt"] < named.index("cifar100-dm-ipc1")


def test_queue__cpu__has_full_runs_of_the_digits_alone():
    assert {cell.recipe.split("-")[0] for cell in queue("cpu")} == {"digits", "cifar10", "mnist", "fashion"}
    assert all(cell.recipe.startswith("digits-") for cell in queue("cpu") if cell.profile is FULL)


@pytest.mark.parametrize("name", ["digits-means", "mnist-means", "cifar10-means"])
def test_means__scored_on_validation_images_and_each_alone_but_for_those_together(name):
    table = tables()[name]
    base, *others = (cell.resolve().values for cell in table.cells())
    assert base["evaluate"]["split"] == "validation"
    assert base["data"]["validation"] > 0
    differing = [_keys(base, other) for other in others]
    assert [len(keys) for keys in differing[:5]] == [1] * 5
    assert set().union(*differing[:5]) >= differing[5] > differing[6]


def _keys(one, other):
    """Dotted keys in which two recipes differ; a start of another name has other options."""
    sections = [part for part in one if isinstance(one[part], dict)]
    found = {f"{part}.{key}" for part in sections for key in one[part] if one[part][key] != other[part].get(key)}
    return found - {"start.pixel_std"}


def test_queue__of_named_tables__whatever_the_device():
    assert {cell.recipe for cell in queue("cpu", ["cifar10-ranks"])} == {"cifar10-lodm-ipc1", "cifar10-lodm-ipc10"}
    assert queue("cpu", ["cost"]) == []


def test_chosen__unknown__names_the_nearest():
    with pytest.raises(UserError, match=r"unknown table 'cifar-10'; did you mean 'cifar10'"):
        chosen(["cifar-10"])


def test_overrides__fraction_of_few_episodes__leaves_one():
    few = Cell(Profile("few", "few", fraction=1e-6), "digits-lodm")
    assert few.overrides["condense"]["episodes"] == 1
    assert "condense" not in Cell(FULL, "digits-lodm").overrides
    assert find("digits-lodm")[1]["condense"]["episodes"] == 700
