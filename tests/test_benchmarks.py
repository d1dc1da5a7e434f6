"""The benchmarks run: every way of every piece of work, on few images and narrow networks."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import pages, plans
from benchmarks.measure import AROUND, KINDS, Way, Work, measure, peak_bytes, resident, shares, warm
from benchmarks.works import QUICK, WORKS, Bench
from condensate import Compute

CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Eager, of width 4, two real images a class."""
    monkeypatch.setattr(Bench, "width", 4)
    monkeypatch.setattr(Bench, "batch_real", 2)
    monkeypatch.setattr(Bench, "computes", lambda self, **asked: {"ours, float32": Compute()})
    return Bench(CPU)


@pytest.mark.parametrize("name", [name for name in WORKS if name not in ("start", "set-up", "mtt-50-steps")])
def test_work__every_way_runs(bench: Bench, name: str):
    work = WORKS[name](bench)
    assert next(iter(work.ways)) == "published"
    assert len(work.ways) > 1
    assert work.operations > 0 or name == "artefact"
    assert work.moved > 0
    for way in work.ways.values():
        way.run()


def test_start__without_data__is_said_not_to_be_measured(bench: Bench):
    (row,) = program.one("start", bench, 3, 1.0)
    assert (row["way"], row["seconds"], row["note"]) == ("not measured", [], "needs --data")
    assert program.shown(row)[:2] == ["start to first episode, CIFAR-10", "not measured"]


def test_measure__ways_in_turn_and_at_least_three_times():
    told: list[str] = []
    work = Work("work", {name: Way(lambda name=name: told.append(name)) for name in "ab"}, 1.0)  # type: ignore[misc]
    rows = measure(work, warm(work, CPU, patience=0.0), 9, CPU, patience=0.0)
    assert told == ["a", "b"] * (1 + 3 + 1)
    assert [len(row.seconds) for row in rows] == [3, 3]
    assert [row.way for row in rows] == ["a", "b"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc of Linux")
def test_peak_bytes__is_what_is_held_beyond():
    def hold() -> None:
        torch.ones(2**24).sum()  # 64 MiB

    found = peak_bytes(hold, CPU)
    assert found is not None
    assert 60 * 2**20 < found < 80 * 2**20
    assert resident("VmRSS") > 0


def test_shares__say_what_the_time_goes_to():
    images, weights = torch.randn(16, 8, 32, 32), torch.randn(8, 8, 3, 3)

    def run() -> None:
        torch.nn.functional.conv2d(images, weights).relu()

    found = shares(run, CPU)
    assert list(found) == [*KINDS, AROUND]
    assert sum(found.values()) == pytest.approx(1, abs=0.1)
    assert found["convolutions, products"] > 0.1
    assert found["single layers"] > 0
    assert found["fused layers"] == 0


def test_program__profile__is_of_every_way(bench: Bench):
    assert all(row["profile"] is None for row in program.one("artefact", bench, 3, 0.0))
    assert all(set(row["profile"]) == {*KINDS, AROUND} for row in program.one("artefact", bench, 3, 0.0, True))


def test_names__quick_ones_are_among_them():
    assert set(QUICK) < set(WORKS)
    assert not set(plans.PLANS) & set(WORKS)


def test_program__failed_work_is_told():
    worker = program.Worker("artefact", ["--device", "nowhere"])
    worker.wait()
    (row,) = worker.rows()
    assert (row["work"], row["way"]) == ("artefact", "failed")
    assert "nowhere" in row["note"]


def test_program__work_is_measured_when_it_is_its_turn(bench: Bench):
    told: list[str] = []
    rows = program.one("artefact", bench, 3, 0.0, turn=lambda: told.append("turn"))
    assert told == ["turn"]
    assert all(row["seconds"] for row in rows)


def test_program__a_worker_told_nothing__ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stdin", io.StringIO("go\n"))
    program.told_to()
    assert capsys.readouterr().out == "ready\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # as where the program that began it has ended
    with pytest.raises(SystemExit, match="before it was this work's turn"):
        program.told_to()


def test_program__shares_are_of_the_rates_beside(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    rates: dict[str, Any] = {"matrix_rate": lambda *_: 1e12, "copy_rate": lambda *_: 1e9}
    for name, rate in rates.items():
        monkeypatch.setattr(program, name, rate)
    first, *others = program.one("artefact", bench, 3, 0.0)
    assert first["times_faster"] == 1
    assert all(row["share_of_copy_rate"] == pytest.approx(row["moved"] / row["median"] / 1e9) for row in others)
    assert all(row["share_of_matrix_rate"] is None for row in others)


def test_pages__performance_md__holds_what_the_evidence_says():
    text = pages.PAGE.read_text()
    assert len(pages.MARKED.findall(text)) == text.count("<!-- benchmark: ") == 4
    assert pages.insert(text, pages.tables()) == text, "renew it: python -m benchmarks.pages"


def test_pages__without_evidence__says_so_and_adding_replaces_by_work(tmp_path: Path):
    assert pages.tables(tmp_path)["cuda"].endswith("\n\nNot measured yet.\n")
    row = {
        "work": "a step",
        "way": "ours",
        "seconds": [2.0, 1.0, 3.0],
        "median": 2.0,
        "times_faster": 1.5,
        "memory": None,
    }
    row |= {"share_of_matrix_rate": 0.5, "share_of_copy_rate": 0.001}
    report = {"device": "cpu", "machine": {"processor": "p", "threads": 2}, "versions": {"torch": "2"}, "commit": "abc"}
    pages.add(report | {"rows": [row, row | {"work": "another"}]}, tmp_path)
    pages.add(report | {"commit": "def", "rows": [row | {"times_faster": 2.5}]}, tmp_path)
    text = pages.tables(tmp_path)["cpu"]
    assert "| a step | ours | 2 | 1 .. 3 | 2.50 | 50 % | < 0.5 % |  |" in text
    assert "1.50" in text
    assert "commits abc, def" in text
    assert "| a step |  |  |  |  |  |  |  |" in pages.tables(tmp_path)["cuda"]
    cuda = report | {"device": "a GPU", "rows": [row]}
    pages.add(cuda, tmp_path)
    text = pages.tables(tmp_path)["cuda"]
    assert "| a step | ours | 2 | 1 .. 3 | 1.50 | 50 % | < 0.5 % |  |" in text
    assert "| another |  |  |  |  |  |  |  |" in text  # not yet measured there
    assert "| a step |  |" not in text
    with pytest.raises(ValueError, match="move it away"):
        pages.add(report | {"versions": {"torch": "3"}, "rows": []}, tmp_path)
