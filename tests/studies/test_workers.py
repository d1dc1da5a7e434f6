"""Work shared out among processes."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from condensate import UserError
from condensate.studies.workers import each


def note(folder: Path, item: int) -> None:
    (folder / str(item)).write_text(f"{os.getpid()} {torch.get_num_threads()}")


def fail(item: int) -> None:
    raise UserError(f"item {item} is wrong")


def linger(folder: Path, item: int) -> None:
    (folder / f"pid{item}").write_text(str(os.getpid()))
    time.sleep(120)


@pytest.mark.parametrize("jobs", [1, 2])
def test_each__every_item_once(tmp_path, jobs):
    each(partial(note, tmp_path), range(4), jobs)
    told = [(tmp_path / str(item)).read_text().split() for item in range(4)]
    processes = {process for process, _ in told}
    assert (str(os.getpid()) in processes) == (jobs == 1)
    assert {threads for _, threads in told} == {"1"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_each__failure__is_the_callers(jobs):
    with pytest.raises(UserError, match="item 0 is wrong"):
        each(fail, [0, 0], jobs)


def fail_or_linger(item: int) -> None:
    if item:
        time.sleep(120)
    fail(item)


def test_each__failure__does_not_wait_for_the_others():
    began = time.monotonic()
    with pytest.raises(UserError, match="item 0 is wrong"):
        each(fail_or_linger, [0, 1], 2)
    assert time.monotonic() - began < 60


def be_killed_or_linger(folder: Path, whose: int, item: int) -> None:
    """Kill the process started first (0) or last (1) once both have work."""
    (folder / f"pid{item}").write_text(str(os.getpid()))
    while len(list(folder.glob("pid*"))) < 2:
        time.sleep(0.05)
    time.sleep(0.2)
    if sorted(int(file.read_text()) for file in folder.glob("pid*"))[whose] == os.getpid():
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(120)


@pytest.mark.parametrize("whose", [0, 1])
def test_each__process_killed__said_in_words_at_once(tmp_path, whose):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"one of 2 processes was killed .* --resume and fewer --jobs"):
        each(partial(be_killed_or_linger, tmp_path, whose), [0, 1], 2)
    assert time.monotonic() - began < 60


def test_each__parent_killed__its_processes_end(tmp_path):
    program = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "if __name__ == '__main__':\n"
        "    from condensate.studies.workers import each\n"
        "    from test_workers import linger\n"
        "    each(partial(linger, Path(sys.argv[1])), [0, 1], 2)\n"
    )
    (tmp_path / "main.py").write_text(program)
    here = str(Path(__file__).parent)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py"), str(tmp_path), here])
    until = time.monotonic() + 100
    while len(list(tmp_path.glob("pid*"))) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    processes = [int(file.read_text()) for file in tmp_path.glob("pid*")]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert len(processes) == 2
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(map(alive, processes))


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().split()[2]
