"""The machine that fills the tables goes on from wherever it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from condensate import UserError, cli, condensing
from condensate.atomic import alone_in
from condensate.console import Display
from condensate.sessions import OutOfTime, Session
from condensate.tables import Cell, Place, Profile, fill, finished, queue, read, run_cell
from condensate.tables import machine as machine_module

CHANGES = {"evaluate": {"repeats": 2, "epochs": 2}, "network": {"width": 8}, "objective": {"batch_real": 8}}
TINY = Profile("tiny", "tiny", fraction=0.01, changes=CHANGES)
CELL = Cell(TINY, "digits-lodm")


def place(folder, **more):
    return Place(folder, "cpu", 1, **more)


def kept(folder, cell=CELL):
    """What must not depend on how often a cell was stopped."""
    result = read(folder, cell)
    return result["artefact_sha256"], [score["accuracies"] for score in result["evaluation"]]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_cell(CELL, place(folder))
    return kept(folder)


def test_run_cell__leaves_a_result_that_tells_what_it_is(tmp_path, uninterrupted):
    run_cell(CELL, place(tmp_path))
    result = read(tmp_path, CELL)
    assert result["fraction"] == 0.01
    assert result["overrides"] == CHANGES | {"condense": {"episodes": 7}}
    assert kept(tmp_path) == uninterrupted


def test_run_cell__stopped_after_every_episode_and_epoch__ends_as_one_that_was_not(tmp_path, uninterrupted):
    folder, stops = tmp_path / CELL.path, 0
    while not finished(tmp_path, CELL):
        try:
            run_cell(CELL, place(tmp_path), until=time.monotonic())
        except OutOfTime:
            stops += 1
            assert (folder / "checkpoints" / "condense.safetensors").is_file()
    assert stops == 6 + 2  # between seven episodes, and the two epochs of each of two networks
    assert len((folder / "log.jsonl").read_text().splitlines()) == 7
    assert kept(tmp_path) == uninterrupted


def test_run_cell__first_episode_is_slow__does_not_end_the_session(tmp_path, monkeypatch):
    """It may have compiled; judged by it, a short session would never get beyond it."""
    monkeypatch.setattr(
        Session, "late", lambda session, step: step > 0
    )  # time is left, for no step as long as the last
    with pytest.raises(OutOfTime):
        run_cell(CELL, place(tmp_path), until=time.monotonic() + 60)
    assert len((tmp_path / CELL.path / "log.jsonl").read_text().splitlines()) == 2


def test_run_cell__a_minute_without_checkpoint__writes_one(tmp_path, monkeypatch):
    """However many episodes there are between two."""

    def stopped(*_: object) -> None:
        raise OutOfTime

    monkeypatch.setattr(condensing, "KEPT_EVERY", 0.0)
    monkeypatch.setattr(condensing.Condensation, "finish", stopped)
    with pytest.raises(OutOfTime):
        run_cell(CELL, place(tmp_path))
    with safe_open(tmp_path / CELL.path / "checkpoints" / "condense.safetensors", "pt") as file:
        assert file.metadata()["next"] == "6"


def test_run_cell__baseline__is_scored_without_episodes(tmp_path):
    cell = Cell(TINY, "digits-dm", row="random-uint8")
    run_cell(cell, place(tmp_path))
    result = read(tmp_path, cell)
    assert result["row"] == "random-uint8"
    assert result["stored"]["images_per_class"] == 4
    assert result["fraction"] is None


def test_run_cell__all_training_images__is_no_run_of_the_recipe(tmp_path):
    few = Profile("few", "few", changes={"evaluate": {"repeats": 1, "epochs_full": 1}, "network": {"width": 8}})
    cell = Cell(few, "digits-dm", row="full")
    run_cell(cell, place(tmp_path))
    result = read(tmp_path, cell)
    assert result["row"] == "full"
    assert result["fraction"] is None
    assert result["stored"]["images_per_class"] == 130


def test_run_cell__study__stopped_and_gone_on_with(tmp_path):
    few = CHANGES | {"continual": {"steps": 2, "orders": 1}}
    cell = Cell(Profile("tiny", "tiny", fraction=0.005, changes=few), "digits-continual-lodm-5steps")
    for _ in range(20):
        try:
            run_cell(cell, place(tmp_path), until=time.monotonic())
            break
        except OutOfTime:
            pass
    assert read(tmp_path, cell)["rows"][cell.recipe]["final"]["mean"] > 0


def test_run_cell__experts_are_not_there__made_once_for_all_that_match_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    few = {
        "experts": {"count": 2},
        "objective": {"syn_steps": 2, "max_start_epoch": 1},
        "evaluate": CHANGES["evaluate"],
    }
    tiny = Profile("tiny", "tiny", fraction=0.02, changes=few | {"network": {"width": 8}})
    first, second = Cell(tiny, "digits-lomtt"), Cell(tiny, "digits-mtt", seed=1)
    for _ in range(20):
        try:
            run_cell(first, place(tmp_path), until=time.monotonic())
            break
        except OutOfTime:
            pass
    run_cell(second, place(tmp_path))
    made = list((tmp_path / "cache" / "experts").glob("*/expert-*"))
    assert len(made) == 2
    assert read(tmp_path, first)["experts_seconds"] > 0
    assert read(tmp_path, second)["experts_seconds"] == 0
    assert read(tmp_path, second)["values"]["experts"]["store"] is None


def test_run_cell__tiny_imagenet_20_of_a_local_folder(tmp_path):
    data = Path(os.environ.get("CONDENSATE_DATA", ""))
    if not (data / "tiny_imagenet_20").is_dir():
        pytest.skip("needs real data: set $CONDENSATE_DATA to a folder that holds tiny_imagenet_20/train.parquet")
    tiny = Profile("tiny", "tiny", fraction=1e-4, changes=CHANGES)
    cell = Cell(tiny, "tinyimagenet-20-lodm-ipc1")
    run_cell(cell, place(tmp_path, data=data))
    result = read(tmp_path, cell)
    assert result["data"]["name"] == "tinyimagenet-20"
    assert result["values"]["data"]["path"] is None
    assert len(result["evaluation"][0]["accuracies"]) == 2


def test_fill__cells_of_one_seed_take_real_features_from_each_other(tmp_path, monkeypatch, uninterrupted):
    monkeypatch.setenv("CONDENSATE_CACHE", str(tmp_path / "cache"))
    twin = Cell(TINY, "digits-dm")
    said = fill([twin, CELL], place(tmp_path, reuse=True), 120, Display(quiet=True))
    assert said.done == [twin.path, CELL.path]
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1
    assert read(tmp_path, CELL)["compute"]["reuse"]
    assert kept(tmp_path) == uninterrupted


def test_fill__runs_what_is_missing_and_nothing_twice(tmp_path, uninterrupted):
    said = fill([CELL], place(tmp_path), 120, Display(quiet=True))
    assert (said.done, said.left) == ([CELL.path], 0)
    assert kept(tmp_path) == uninterrupted
    file = tmp_path / CELL.path / "result.json"
    before = file.stat().st_mtime_ns
    assert fill([CELL], place(tmp_path), 120, Display(quiet=True)).done == []
    assert file.stat().st_mtime_ns == before


def test_fill__time_is_up__ends_in_time_and_says_what_goes_on(tmp_path):
    long = Cell(Profile("long", "long"), "digits-lodm")
    began = time.monotonic()
    said = fill([long, CELL], place(tmp_path), 8, Display(quiet=True))
    assert (
        time.monotonic() - began < 8 + machine_module.LAST_SECONDS
    )  # eight, and what a process that was asked to end is given
    assert said.stopped == [long.path], said
    assert (said.done, said.left) == ([], 2)


class Asked:
    """Stands in for a process that ends when it is asked to, or has to be killed."""

    def __init__(self, listens: bool) -> None:
        self.listens, self.alive, self.killed = listens, True, False

    def terminate(self) -> None:
        self.alive = not self.listens

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None or not self.alive

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.alive, self.killed = False, True


@pytest.mark.parametrize("listens", [True, False])
def test_end__killed_only_if_it_does_not_listen(listens):
    process = Asked(listens)
    machine_module._end(process)
    assert not process.alive
    assert process.killed != listens


def test_work__asked_to_end__says_so_and_gives_back_what_it_took(tmp_path, monkeypatch):
    def asked_twice(*_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # as who ends a group of processes does
            raise
        raise AssertionError("goes on though it was asked to end")

    monkeypatch.setattr(machine_module, "run_cell", asked_twice)
    ours, theirs = get_context("spawn").Pipe(duplex=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        machine_module._work(CELL, place(tmp_path), 60.0, theirs)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ours.recv() == (machine_module.STOPPED, "")


def test_fill__what_cannot_be_run__is_left_out_with_the_reason(tmp_path):
    missing = Cell(TINY, "cifar10-lodm-ipc1")
    (tmp_path / "sets" / "fashion_mnist").mkdir(parents=True)
    said = fill([missing, CELL], place(tmp_path, data=tmp_path / "sets"), 120, Display(quiet=True))
    assert said.refused[missing.path].endswith("holds no folder cifar10; it has fashion_mnist")
    assert said.done == [CELL.path]


def test_fill__a_cell_of_another_process__is_left_to_it(tmp_path):
    folder = tmp_path / CELL.path
    folder.mkdir(parents=True)
    with alone_in(folder):
        said = fill([CELL], place(tmp_path), 60, Display(quiet=True))
    assert "another process is at work" in said.refused[CELL.path]


def test_run_cell__begun_on_another_device__is_not_mixed(tmp_path):
    with pytest.raises(OutOfTime):
        run_cell(CELL, place(tmp_path), until=time.monotonic())
    file = tmp_path / CELL.path / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "a GPU"}))
    with pytest.raises(UserError, match="was started on a GPU and goes on there"):
        run_cell(CELL, place(tmp_path))


def test_reading__data_sets_by_letters_and_digits(tmp_path):
    (tmp_path / "tiny_imagenet_20").mkdir()
    recipe = Cell(TINY, "tinyimagenet-20-dm-ipc1").resolve()
    assert machine_module._reading(recipe, tmp_path)["data"]["path"] == str(tmp_path / "tiny_imagenet_20")
    with pytest.raises(UserError, match="must name a folder with data sets"):
        machine_module._reading(recipe, tmp_path / "nowhere")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_table_run__killed__takes_its_process_with_it_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "condensate", "table", "run", "digits", "--results", "results", "--minutes", "5"]
    running = subprocess.Popen([*command, "--threads", "1"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    first = tmp_path / "results" / queue("cpu", ["digits"])[0].path
    deadline = time.monotonic() + 60
    while not (first / "log.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    deadline = time.monotonic() + 20
    while True:  # the lock is free as soon as the cell's process has gone
        try:
            with alone_in(first):
                break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert (first / "log.jsonl").is_file()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_table_run__terminated__says_so_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "condensate", "table", "run", "digits", "--results", "results", "--minutes", "5"]
    running = subprocess.Popen([*command, "--threads", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    first = tmp_path / "results" / queue("cpu", ["digits"])[0].path
    deadline = time.monotonic() + 60
    while not (first / "log.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.terminate()
    said = running.communicate()[1].splitlines()
    assert running.returncode == 143
    assert said[-1] == "condensate: terminated"
    assert not [line for line in said if "Traceback" in line or "leaked" in line]


@pytest.mark.parametrize("text", ["{}", "[]", "3", "half a resu"])
def test_finished__result_says_nothing__is_damaged(tmp_path, text):
    folder = tmp_path / CELL.path
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result.json is damaged; delete it"):
        finished(tmp_path, CELL)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_run_cell__killed_at_any_moment__ends_as_one_that_was_not(tmp_path):
    """A cell of some ten seconds with a checkpoint every second or so, killed every few seconds, ever fewer times."""
    changes = {"evaluate": {"repeats": 2, "epochs": 30}, "condense": {"checkpoint": 20}}
    cell = Cell(Profile("whole", "whole", fraction=0.3, changes=changes), "digits-lodm")
    run_cell(cell, place(tmp_path / "whole"))
    program = (
        "import sys, torch; from pathlib import Path; from condensate.tables import *; torch.set_num_threads(1); "
        f"cell = Cell(Profile('whole', 'whole', fraction=0.3, changes={changes}), 'digits-lodm'); "
        "run_cell(cell, Place(Path(sys.argv[1]), 'cpu', 1))"
    )
    draws, kills = torch.Generator().manual_seed(0), 0
    while not finished(tmp_path / "killed", cell):
        running = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
        try:
            running.wait(3 + 4 * float(torch.rand((), generator=draws)) + kills / 4)  # a busy machine starts slowly
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
        assert kills < 60
    assert kills >= 2
    assert kept(tmp_path / "killed", cell) == kept(tmp_path / "whole", cell)


def test_command__says_what_is_next(tmp_path, capsys):
    assert cli.main(["table", "run", "digits", "--results", str(tmp_path), "--minutes", "0"]) == 0
    said = capsys.readouterr().err
    assert "0 of 75 cells done" in said
    assert "next: full/digits-dm/seed0" in said
    assert list(tmp_path.iterdir()) == []


def test_command__show__prints_markdown_and_renews_pages(tmp_path, capsys):
    assert cli.main(["table", "show", "digits", "--results", str(tmp_path)]) == 0
    assert "**The digits, 8x8 pixels**" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text("<!-- table: digits -->\n<!-- end of table -->\n")
    assert cli.main(["table", "show", "--results", str(tmp_path), "--into", str(page)]) == 0
    assert "renewed" in capsys.readouterr().out
    assert "0 of 75 done" in page.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "say how long: condensate table run --minutes 60"),
        (["run", "--minutes", "-1"], "expected a number of minutes, at least 0, got '-1'"),
        (["run", "--minutes", "soon"], "expected a number of minutes"),
        (["run", "--minutes", "1", "--into", "page.md"], "--into is for table show"),
        (["run", "cifar-10", "--minutes", "0"], "unknown table 'cifar-10'; did you mean 'cifar10'"),
        (["show", "--minutes", "1"], "are for table run"),
        (["show", "--results", "nowhere"], "no folder nowhere of results"),
        (["show", "digits", "--results", ".", "--into", "page.md"], "give no TABLE with --into"),
        (["show", "--results", ".", "--into", "page.md"], "no page page.md"),
        (["show", "--results", ".", "--into", "page.bin"], "page.bin is not a page of text"),
        (["fill"], "invalid choice: 'fill'"),
        ([], "required: what; see: condensate table --help"),
    ],
)
def test_command__mistakes__in_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.bin").write_bytes(b"\x89PNG\xff")
    assert cli.main(["table", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
