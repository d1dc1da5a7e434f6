"""Results are checked against their cells, and told with their spread over seeds."""

import json
from pathlib import Path
from statistics import stdev

import pytest

from condensate import UserError
from condensate.recipe import STUDIES
from condensate.sheets import find, resolve, shipped
from condensate.tables import Cell, compare, estimate, queue, read, tables

RESULTS = Path(__file__).parents[2] / "results"
TWENTIETH = tables()["cifar10-twentieth"].profile
LOW, BASE = Cell(TWENTIETH, "cifar10-lodm-ipc1"), Cell(TWENTIETH, "cifar10-dm-ipc1")


def seeds(cell: Cell, count: int) -> list[Cell]:
    return [Cell(cell.profile, cell.recipe, seed) for seed in range(count)]


def test_read__not_run__is_none(tmp_path):
    assert read(tmp_path, LOW) is None


@pytest.mark.parametrize(
    "changed", [{"recipe": "cifar10-dm-ipc1"}, {"seed": 3}, {"fraction": 1.0}, {"smoke": True}, {"row": "random"}]
)
def test_read__of_something_else__refused(put, changed):
    results = put(LOW, [0.4, 0.5, 0.6], **changed)
    with pytest.raises(UserError, match="is not of twentieth/cifar10-lodm-ipc1/seed0"):
        read(results, LOW)


def test_read__other_networks_or_epochs__refused(put):
    with pytest.raises(UserError, match="other networks or epochs"):
        read(put(LOW, [0.4, 0.5]), LOW)
    with pytest.raises(UserError, match="other networks or epochs"):
        read(put(LOW, [0.4, 0.5, 0.6], evaluation=[]), LOW)


def test_read__recipe_has_changed_since__refused(put):
    values = LOW.resolve().anywhere().values
    settled = {"compute": {"compile": "always"}, "evaluate": values["evaluate"] | {"compile": "never"}}
    assert read(put(LOW, [0.4, 0.5, 0.6], values=values | settled), LOW)
    other = values | {"condense": values["condense"] | {"lr": 7.0}, "network": {"name": "mlp"}}
    with pytest.raises(UserError, match="was made with other network, condense than twentieth/cifar10-lodm-ipc1"):
        read(put(LOW, [0.4, 0.5, 0.6], values=other), LOW)
    with pytest.raises(UserError, match="was made with other parameterization than"):
        read(put(LOW, [0.4, 0.5, 0.6], values=values | {"parameterization": {"name": "lowrank", "rank": 3}}), LOW)


def test_estimate__one_seed__spread_over_networks(put):
    found = estimate(put(LOW, [0.4, 0.5, 0.6]), seeds(LOW, 3))
    assert found.mean == pytest.approx(0.5)
    assert found.std == pytest.approx(0.1)
    assert (len(found.values), found.networks) == (1, 3)


def test_estimate__several_seeds__spread_over_seed_means(put):
    for seed, middle in enumerate((0.4, 0.5, 0.8)):
        results = put(Cell(TWENTIETH, LOW.recipe, seed), [middle - 0.1, middle, middle + 0.1])
    found = estimate(results, seeds(LOW, 3))
    assert found.mean == pytest.approx(1.7 / 3)
    assert found.std == pytest.approx(stdev([0.4, 0.5, 0.8]))


def test_compare__pairs_the_seeds_that_both_have(put):
    for seed, (low, base) in enumerate([(0.50, 0.40), (0.52, 0.40), (0.60, None)]):
        results = put(Cell(TWENTIETH, LOW.recipe, seed), [low] * 3)
        if base is not None:
            put(Cell(TWENTIETH, BASE.recipe, seed), [base] * 3)
    gap = compare(estimate(results, seeds(LOW, 3)), estimate(results, seeds(BASE, 3)))
    assert gap["values"] == pytest.approx([0.10, 0.12])
    half = 12.706 * stdev([0.10, 0.12]) / 2**0.5  # Student's t at 97.5 %, one degree of freedom
    assert (gap["low"], gap["high"]) == pytest.approx((0.11 - half, 0.11 + half), abs=1e-5)


def test_compare__one_seed__no_interval_and_none_in_common__nothing(put):
    results = put(LOW, [0.5] * 3)
    assert compare(estimate(results, [LOW]), estimate(results, [BASE])) is None
    put(BASE, [0.4] * 3)
    gap = compare(estimate(results, [LOW]), estimate(results, [BASE]))
    assert gap["mean"] == pytest.approx(0.1)
    assert gap["low"] is None


def test_results__every_file_is_of_a_cell_and_tells_no_place():
    known = {cell.path: cell for device in ("cpu", "cuda") for cell in queue(device)}
    files = sorted(RESULTS.glob("*/*/*/result.json"))
    assert len(files) >= 48
    for file in files:
        cell = known[str(file.parent.relative_to(RESULTS))]
        found = read(RESULTS, cell)
        assert found is not None
        assert "path" not in found["overrides"].get("data", {}), file
        assert found["commit"]


def test_results__every_study_is_of_a_table():
    files = {f"studies/{file.name}" for file in (RESULTS / "studies").iterdir()}
    assert files == {table.study for table in tables().values() if table.study}


def test_quoted__are_the_numbers_the_recipes_hold_and_name_a_source():
    held = json.loads((RESULTS / "quoted.json").read_text())["numbers"]
    said = {name: find(name)[2].get("published", "") for name in shipped()}
    quoted = {
        entry["recipe"]: f"{entry['mean']} ± {entry['std']} ({entry['source']})" for entry in held if "row" not in entry
    }
    assert quoted == {name: text for name, text in said.items() if text[:1].isdigit()}
    for entry in held:
        assert entry["source"]
        assert entry["recipe"] in shipped()
        assert not set(STUDIES) & set(resolve(entry["recipe"]).values)
