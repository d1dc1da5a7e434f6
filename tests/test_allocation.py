"""Where a program's memory comes from."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from benchmarks.__main__ import KEPT
from condensate import Streams, allocation, build_network, training
from condensate.allocation import OWN_SETTINGS, OWN_TUNABLES, keep_freed_memory
from condensate.examples import Held
from condensate.studies.workers import each

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of the GNU C library")
BLOCK = 2**26

# Of a block of 64 MiB that is freed and allocated once more: the pages that the system gave the second time.
SECOND_TIME = f"""
import ctypes, resource
libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size, whatever the system prefers
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def second_time():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc({BLOCK})
        ctypes.memset(block, 1, {BLOCK})
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""
UNSET = {key: value for key, value in os.environ.items() if key not in {*OWN_SETTINGS, "GLIBC_TUNABLES"}}


def pages_of_the_second_time(before: str, surroundings: dict[str, str] | None = None) -> int:
    command = [sys.executable, "-c", f"{SECOND_TIME}\n{before}"]
    done = subprocess.run(command, check=True, capture_output=True, env=UNSET | (surroundings or {}))
    return int(done.stdout)


def all_of(block: int) -> int:
    return block // os.sysconf("SC_PAGE_SIZE")


@needs_glibc
def test_freed_memory__is_not_asked_of_the_system_anew():
    asked = "from condensate.allocation import keep_freed_memory\nassert keep_freed_memory()\nprint(second_time())"
    for surroundings in ({}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}):
        assert pages_of_the_second_time(asked, surroundings) < all_of(BLOCK) / 100


@needs_glibc
def test_freed_memory__by_the_variables_that_benchmarks_give_all_ways():
    assert pages_of_the_second_time("print(second_time())") > all_of(BLOCK) / 2
    assert pages_of_the_second_time("print(second_time())", KEPT) < all_of(BLOCK) / 100


@needs_glibc
def test_freed_memory__import_leaves_it_as_it_is__the_program_keeps_it():
    program = "import condensate, condensate.__main__\nbefore = second_time()\n"
    program += "condensate.__main__.cli.main = second_time\nprint(100 * before // (1 + condensate.__main__.main()))"
    assert pages_of_the_second_time(program) > 100 * 10, "the import keeps it, or the program does not"


@needs_glibc
@pytest.mark.parametrize(
    "own", [{name: "9"} for name in OWN_SETTINGS] + [{"GLIBC_TUNABLES": f"{name}=9"} for name in OWN_TUNABLES], ids=str
)
def test_freed_memory__what_the_user_has_set__stays(own: dict[str, str]):
    assert not keep_freed_memory(own)


def test_freed_memory__other_libraries__have_no_such_setting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda _: pytest.fail("looked for a setting that is not there"))
    assert not keep_freed_memory({})


@needs_glibc
def test_free_memory__given_back__is_not_held():
    program = f"""
from pathlib import Path
from condensate.allocation import give_back_free_memory, keep_freed_memory
def held():
    return int(Path("/proc/self/statm").read_text().split()[1])
before = held()
keep_freed_memory()
second_time()
assert held() - before > {all_of(BLOCK) * 0.9}, "it is not kept"
give_back_free_memory()
print(max(0, held() - before))"""
    assert pages_of_the_second_time(program) < all_of(BLOCK) / 10


def test_accuracy__is_not_beside_the_memory_of_training(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(training, "give_back_free_memory", lambda: told.append("given back"))
    network = build_network("convnet", (1, 8, 8), 2, Streams(0)("network"), width=4, depth=1)
    examples = Held(torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64))
    monkeypatch.setattr(network, "forward", lambda images: told.append("scored") or torch.ones(len(images), 2))
    training.accuracy(network, examples)
    assert told == ["given back", "scored"]


def find_all_kept(_: int) -> None:
    found: dict[str, Callable[[], int]] = {}
    exec(SECOND_TIME, found)
    assert found["second_time"]() < all_of(BLOCK) / 100


@needs_glibc
def test_freed_memory__processes_of_a_study_keep_it(monkeypatch: pytest.MonkeyPatch):
    for name in {*OWN_SETTINGS, "GLIBC_TUNABLES"}:
        monkeypatch.delenv(name, raising=False)
    each(find_all_kept, [0, 1], 2)
