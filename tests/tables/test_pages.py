"""Tables as Markdown: generated, so that a number without evidence cannot stand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from condensate import UserError
from condensate.tables import Cell, insert, markdown, rewrite, tables
from condensate.tables.pages import MARKED

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "<!-- table: " in page.read_text()
]
TWENTIETH, FULL = tables()["cifar10-twentieth"].profile, tables()["cifar10"].profile


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages__hold_what_the_results_say(page):
    text = page.read_text()
    assert insert(text, RESULTS) == text, f"renew it: condensate table show --into {page.relative_to(ROOT)}"


def test_pages__tables_md_has_all_tables_and_readme_some():
    assert {page.name for page in PAGES} >= {"README.md", "tables.md"}
    marked = [found["name"] for found in MARKED.finditer((ROOT / "docs" / "tables.md").read_text())]
    assert marked == list(tables())


def lines(text: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their label."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_markdown__pairs__accuracy_difference_and_what_is_missing(put):
    for seed, (low, base) in enumerate([(0.40, 0.30), (0.42, 0.30)]):
        put(Cell(TWENTIETH, "cifar10-lodm-ipc1", seed), [low] * 3)
        results = put(Cell(TWENTIETH, "cifar10-dm-ipc1", seed), [base] * 3)
    put(Cell(TWENTIETH, "cifar10-lodsa-ipc1"), [0.35] * 3)
    text = markdown(tables()["cifar10-twentieth"], results)
    rows = lines(text)
    assert rows["LoDM"] == ["41.0 ± 1.4 (2 images; 2 x 3)"]
    assert rows["DM"] == ["30.0 ± 0.0 (2 images; 2 x 3)"]
    assert rows["LoDM is better by"] == ["+11.0 (-1.7 to +23.7)"]
    assert rows["LoDSA is better by"] == rows["DSA"] == rows["DC"] == rows["random real images"] == [""]
    assert "5 of 24 done" in text
    assert "quoted" not in text  # no full run of others beside a fraction of ours


def test_markdown__quoted__beside_full_runs_with_source(put):
    results = put(Cell(FULL, "cifar10-dm-ipc1-original"), [0.26] * 20)
    (results / "quoted.json").write_text((RESULTS / "quoted.json").read_text())
    text = markdown(tables()["cifar10"], results)
    rows = lines(text)
    assert rows["DM, its paper's setting"] == ["26.0 ± 0.0 (2 images; 1 x 20)", "", ""]
    assert rows["DM, quoted"] == ["26.0 ± 0.8 [1]", "48.9 ± 0.6 [1]", "63.0 ± 0.4 [1]"]
    assert "[1] Zhao & Bilen, WACV 2023" in text


def test_markdown__variants__images_of_each(put):
    table = tables()["cifar10-ranks"]
    cell = table.cell("cifar10-lodm-ipc1", variant="rank 4")
    results = put(cell, [0.3] * 20, stored={"images_per_class": 4})
    assert lines(markdown(table, results))["LoDM, 1 image a class"] == ["", "", "30.0 ± 0.0 (4 images; 1 x 20)", ""]


def test_markdown__networks__a_column_each(put):
    table = tables()["cifar10-architectures"]
    assert "not run yet" in markdown(table, Path("nowhere"))
    cell = table.cell("cifar10-lodm-ipc10")
    scores = [
        {"network": name, "epochs": 1000, "accuracies": [mean] * 20, "mean": mean, "std": 0.0}
        for name, mean in (("convnet", 0.5), ("vgg11", 0.4))
    ]
    rows = lines(markdown(table, put(cell, [0.5], evaluation=scores)))
    assert rows[""] == ["convnet", "vgg11"]
    assert rows["LoDM, learnt on ConvNet"] == ["50.0 ± 0.0 (1 x 20)", "40.0 ± 0.0 (1 x 20)"]
    assert rows["DM, learnt on ConvNet"] == ["", ""]


def test_markdown__continual__last_step_and_mean(put):
    table = tables()["cifar10-continual"]
    name = "cifar10-continual-lodm-5steps"
    point = {"mean": 0.4, "std": 0.01, "values": [0.4] * 5}
    own = {"final": point, "average_incremental": point | {"mean": 0.6}}
    results = put(table.cell(name), [0.4], rows={name: own})
    assert lines(markdown(table, results))["LoDM"] == ["40.0 ± 1.0 (5)", "60.0 ± 1.0 (5)", "", ""]


def test_markdown__study__all_steps_or_the_last(tmp_path):
    def row(*means):
        curve = [{"classes_seen": 2 * n + 2, "images": 4 * n + 4, "mean": m, "std": 0.01} for n, m in enumerate(means)]
        curve[-1]["networks"] = 6
        over = {"mean": sum(means) / len(means), "std": 0.02}
        return {"curve": curve, "average_incremental": over, "forgetting": over}

    study = {
        "recipe": "digits-continual-lodm-5steps",
        "rows": {"digits-continual-lodm-5steps": row(0.9, 0.8), "random-uint8": row(0.8, 0.6)},
        "differences": {"random-uint8": {"mean": 0.2, "low": 0.1, "high": 0.3}},
        **{"orders": {"0": [], "1": []}, "fraction": 0.1, "budget": "growing", "commit": "abc", "device": "cpu"},
        **{"machine": {"processor": "a processor", "threads": 1}, "versions": {"torch": "2.13.0"}},
    }
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "continual-digits.json").write_text(json.dumps(study))
    text = markdown(tables()["continual-digits"], tmp_path)
    rows = lines(text)
    assert rows["memory"] == [
        "images",
        "2 classes",
        "all classes",
        "mean over steps",
        "forgetting",
        "LoDM is better by",
    ]
    assert rows["LoDM"] == ["8", "90.0 ± 1.0", "80.0 ± 1.0", "85.0 ± 2.0", "85.0 ± 2.0", ""]
    assert rows["random real images, uint8"][-1] == "+20.0 (+10.0 to +30.0)"
    assert "± over 2 class orders of 3 networks each" in text
    assert "10 % of the recipe's episodes" in text
    assert lines(markdown(tables()["continual-digits-brief"], tmp_path))["LoDM"] == ["8", "80.0 ± 1.0", ""]
    assert "not run yet" in markdown(tables()["continual-mnist"], tmp_path)


def test_markdown__cost__only_what_was_run(put):
    results = put(Cell(TWENTIETH, "cifar10-lodm-ipc1"), [0.4] * 3)
    put(Cell(TWENTIETH, "cifar10-lodm-ipc1", 1), [0.4] * 3, seconds=240.0)
    rows = lines(markdown(tables()["cost"], results))
    assert rows["twentieth: cifar10-lodm-ipc1"] == ["2", "3 min", "", "1.0 MiB", "a processor, 2 threads"]
    assert len(rows) == 3


def test_markdown__cost__not_of_runs_that_took_features_from_others(put):
    cell = Cell(TWENTIETH, "cifar10-lodm-ipc1")
    results = put(cell, [0.4] * 3, compute={"reuse": True}, seconds=60.0)
    assert lines(markdown(tables()["cost"], results))[f"twentieth: {cell.recipe}"][:2] == ["1", ""]
    put(replace(cell, seed=1), [0.4] * 3)
    assert lines(markdown(tables()["cost"], results))[f"twentieth: {cell.recipe}"][:2] == ["2", "2 min"]


@pytest.mark.parametrize(
    "cell", [Cell(TWENTIETH, "cifar10-lodsa-ipc1"), Cell(TWENTIETH, "cifar10-dm-ipc1", row="random")]
)
def test_markdown__cost__of_runs_that_would_have_but_had_nothing_to_take(put, cell):
    results = put(cell, [0.4] * 3, compute={"reuse": True}, seconds=240.0)
    assert lines(markdown(tables()["cost"], results))[f"twentieth: {cell.name}"][:2] == ["1", "4 min"]


def test_insert__keeps_the_rest_and_refuses_half_a_marker(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: cifar10-twentieth -->\nold\n<!-- end of table -->\nafter\n")
    assert rewrite(page, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- table: cifar10-twentieth -->\n\n**CIFAR-10")
    assert text.endswith("<!-- end of table -->\nafter\n")
    assert "old" not in text
    assert not rewrite(page, tmp_path)
    with pytest.raises(UserError, match="needs an <!-- end of table -->"):
        insert("<!-- table: cifar10 -->\n", tmp_path)
    with pytest.raises(UserError, match="unknown table 'cifar11'"):
        insert("<!-- table: cifar11 -->\n<!-- end of table -->\n", tmp_path)
