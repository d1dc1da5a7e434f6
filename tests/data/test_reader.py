"""Decoding ahead: the same pixels whatever was announced, bounded, by processes that are never left over."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from condensate.data import disk
from condensate.data.archive import stored
from condensate.data.decoding import Encoded, Source
from condensate.data.disk import OnDisk

IMAGES = 600


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CONDENSATE_CACHE", str(folder))
        yield folder


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(IMAGES, 4, 4), dtype=np.uint8)


def images(kept: Path, workers: int) -> OnDisk:
    """600 images of random bytes."""
    split = Encoded(np.zeros(IMAGES, int), lambda row: b"P5 4 4 255\n" + pixels()[row].tobytes(), str)
    source = Source(lambda: "", lambda: "random bytes", lambda: (split, split, ["one"]))
    return stored(source, None, None, workers).train_images


def expected(index: Tensor) -> Tensor:
    return torch.from_numpy(pixels())[:, None][index]


def episodes(size: int = 50) -> Iterator[Tensor]:
    """Indices without end."""
    for seed in count():
        yield torch.randperm(IMAGES, generator=torch.Generator().manual_seed(seed))[:size]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_read__as_announced__same_pixels(kept: Path, workers: int):
    found = images(kept, workers)
    found.expect(episodes(130))
    for index in islice(episodes(130), 20):
        assert found.expects(index)
        assert torch.equal(found.read(index), expected(index))


@pytest.mark.parametrize("workers", [0, 2])
def test_read__not_as_announced__same_pixels(kept: Path, workers: int):
    found, coming = images(kept, workers), list(islice(episodes(), 12))
    found.expect(coming)
    assert torch.equal(found.read(torch.tensor([5, 5, 0])), expected(torch.tensor([5, 5, 0])))  # between
    assert found.expects(coming[0])
    for place in (0, 3, 4, 4, 11, 2):  # some passed over, one twice, one too late
        assert torch.equal(found.read(coming[place]), expected(coming[place]))
    found.expect(coming[6:])  # another plan
    assert torch.equal(found.read(coming[6]), expected(coming[6]))
    found.expect([])
    assert torch.equal(found.read(coming[7]), expected(coming[7]))
    assert torch.equal(found.read(), expected(torch.arange(IMAGES)))
    assert found.read(torch.tensor([], dtype=torch.long)).shape == (0, 1, 4, 4)


def test_expects__is_of_what_comes_next(kept: Path):
    found, coming = images(kept, 1), list(islice(episodes(), 3))
    assert not found.expects(coming[0])
    found.expect(coming)
    assert [found.expects(index) for index in coming] == [True, False, False]
    found.read(coming[0])
    assert [found.expects(index) for index in coming] == [False, True, False]
    assert images(kept, 0).expects(coming[2])  # nothing is decoded ahead: nothing need be known


def test_expect__without_end__is_bounded(kept: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk, "AHEAD", 16 * 500)
    taken = 0

    def coming() -> Iterator[Tensor]:
        nonlocal taken
        for index in episodes():
            taken += 1
            yield index

    found = images(kept, 1)
    found.expect(coming())
    assert taken == 10
    for index in islice(episodes(), 7):
        found.read(index)
    assert taken == 17


@pytest.mark.parametrize("wrong", [IMAGES, -IMAGES - 1])
def test_read__no_such_image__is_an_error(kept: Path, wrong: int):
    with pytest.raises(IndexError):
        images(kept, 1).read(torch.tensor([0, wrong]))


def test_waited__counts_what_reading_took(kept: Path, monkeypatch: pytest.MonkeyPatch):
    found = images(kept, 0)
    monkeypatch.setattr(found.reader.pool, "_decode_here", lambda *rest: (time.sleep(0.1), rest[-1].advance()))
    found.read(torch.arange(3))
    assert 0.1 <= found.waited < 1


def test_warm__hardly_waits(kept: Path):
    """Episodes of 50 ms that read what takes a few to decode: the median one waits less than a tenth of its time."""
    found, waits = images(kept, 1), []
    found.expect(episodes())
    for index in islice(episodes(), 15):
        time.sleep(0.05)
        before = found.waited
        found.read(index)
        waits.append(found.waited - before)
    assert sorted(waits[3:])[6] < 0.005


# Processes


def gone(pid: int) -> bool:
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_processes__start_when_needed_and_end_with_the_images(kept: Path):
    found = images(kept, 2)
    assert not found.reader.pool.processes
    found.read(torch.arange(3))
    pids = [process.pid for process in found.reader.pool.processes]
    assert len(pids) == 2
    del found
    assert all(map(gone, pids))


def consume(found: OnDisk) -> None:
    for index in islice(episodes(), 1, 400):
        found.read(index)


def test_process_that_dies__is_an_error_and_no_hang(kept: Path):
    found = images(kept, 2)
    found.expect(episodes())
    found.read(next(episodes()))
    for process in found.reader.pool.processes:
        process.kill()
    with pytest.raises(RuntimeError, match=r"a process that decodes images ended, status -9"):
        consume(found)
    with pytest.raises(RuntimeError, match=r"ended, status -9"):
        found.read(torch.arange(9))


SCRIPT = """
import sys, torch, condensate
data = condensate.load_data(hold="disk", workers=2)
data.train.expect(torch.arange(1000).split(10))
data.train.images(torch.arange(10))
print(*(process.pid for process in data.train.pixels.reader.pool.processes), flush=True)
"""


@pytest.mark.parametrize(
    "end", ["", "raise SystemExit(0)", "def f(): yield data\nx = f(); next(x); loop = [x]; loop.append(loop)"]
)
def test_script_without_main_guard__ends_at_once_and_leaves_nothing(kept: Path, end: str):
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", SCRIPT + end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(gone(int(pid)) for pid in done.stdout.split())


def test_killed_script__its_processes_end(kept: Path):
    command = [sys.executable, "-c", SCRIPT + "import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        pids = running.stdout.readline().split()
        running.kill()
    assert len(pids) == 2
    assert all(gone(int(pid)) for pid in pids)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_process__has_processes_of_its_own(kept: Path):
    code = """
import os, sys, torch, condensate
data = condensate.load_data(hold="disk", workers=1)
first = data.train.images(torch.arange(64))
child = os.fork()
same = torch.equal(first, data.train.images(torch.arange(64)))
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(status or not same)
os._exit(not same)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
