"""The benchmarks run: every way of every piece of work, on few images and narrow networks."""

import io
import json
import platform
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as program
from benchmarks import apart, compiling, pages, plans, published, scaling, several, works
from benchmarks.apart import Apart
from benchmarks.measure import AROUND, KINDS, Way, Work, measure, peak_bytes, resident, shares, warm
from benchmarks.works import QUICK, WORKS, Bench
from condensate import Augment, Compute, ImageData, Streams, build_network, compiler
from condensate.capabilities import can_compile
from condensate.sgd import Sgd

CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Eager, of width 4, two real images a class."""
    monkeypatch.setattr(Bench, "width", 4)
    monkeypatch.setattr(Bench, "batch_real", 2)
    monkeypatch.setattr(Bench, "computes", lambda self, **asked: {"ours, float32": Compute()})
    return Bench(CPU)


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine, which take long to measure."""
    for name, rate in (("matrix_rate", 1e12), ("copy_rate", 1e9)):
        monkeypatch.setattr(program, name, lambda *_, rate=rate: rate)


@pytest.mark.parametrize("name", [name for name in WORKS if name not in ("start", "set-up", "mtt-50-steps")])
def test_work__every_way_runs(bench: Bench, name: str):
    work = WORKS[name](bench)
    assert next(iter(work.ways)) == "published"
    assert len(work.ways) > 1
    assert work.operations > 0 or name == "artefact"
    assert work.moved > 0
    for way in work.ways.values():
        way.run()


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Without augmentation, all real images in every batch, and one fresh network for both ways."""
    monkeypatch.setattr(Bench, "width", 6)
    monkeypatch.setattr(Bench, "batch_real", 3)
    monkeypatch.setattr(published, "siamese", lambda *_: lambda images: images)
    monkeypatch.setattr(works, "Augment", lambda *_: Augment([]))

    def network(self: Bench, data: ImageData):
        made = build_network("convnet", data.shape, 10, Streams(0)("any"), width=6, depth=3)
        made.reset_(Streams(0)("network", 1))  # as an objective draws it in the episode that is measured
        return made

    monkeypatch.setattr(Bench, "network", network)
    return Bench(CPU)


@pytest.mark.parametrize("name", ["dm-ipc1", "dm-ipc10", "dc-ipc1", "dc-ipc10", "mtt-ipc1"])
def test_work__both_ways_give_the_same_gradient(plainly: Bench, monkeypatch: pytest.MonkeyPatch, name: str):
    """So neither does less than the method asks for."""
    gradients: list[list[Tensor]] = []

    def of_theirs(self: torch.optim.SGD) -> None:
        gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])

    def of_ours(self: Sgd, lr: float) -> None:
        gradients.append([tensor.grad.clone() for tensor in self.tensors])

    monkeypatch.setattr(torch.optim.SGD, "step", of_theirs)
    monkeypatch.setattr(Sgd, "step", of_ours)
    monkeypatch.setattr(Bench, "computes", lambda self, **asked: {"ours, float32": Compute()})
    work = WORKS[name](plainly)
    for way in ("published", "ours, float32"):
        work.ways[way].run()
    theirs, ours = gradients
    assert ours
    for one, other in zip(theirs, ours, strict=False):  # the published one of MTT ends with the step size
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=2e-3, atol=2e-5 * float(one.abs().max()))


def test_scoring__finds_the_same_share_right(bench: Bench):
    theirs, ours = (way.run() for way in WORKS["scoring"](bench).ways.values())
    assert theirs == ours
    assert 0 < theirs < 1


def test_between__compiled__is_trained_by_a_program(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """Five epochs of 100 images, in pieces of 25."""
    ran: list[str] = []
    monkeypatch.setattr(
        "torch.compile", lambda function, **_: lambda *given: ran.append(function.__qualname__) or function(*given)
    )
    monkeypatch.setattr(Bench, "computes", lambda self, **asked: {"ours, float32": Compute(compiled=True)})
    work = WORKS["between"](bench)
    for name, programs in (("ours, float32, not compiled", 0), ("ours, float32", 5 * 4)):
        work.ways[name].run()
        assert len(ran) == programs


@pytest.mark.parametrize(
    "name", ["features", "dm-ipc10", "dc-ipc10", "dsa-ipc1", "mtt", "experts", "evaluation-2", "scoring", "between"]
)
def test_work__needs_no_more_operations_than_any_way_does(monkeypatch: pytest.MonkeyPatch, name: str):
    """So shares of the product rate are of what must be done, not more; half as many would be another mistake."""
    monkeypatch.setattr(Bench, "width", 64)  # where the first layer, which leads no gradient back, is a small part
    monkeypatch.setattr(Bench, "batch_real", 2)
    monkeypatch.setattr(Bench, "computes", lambda self, **asked: {"ours, float32": Compute()})
    few = {"mtt": partial(works.mtt, ipc=1, steps=2), "scoring": partial(works.scoring, count=64)}
    make = few.get(name) or WORKS[name]
    work = make(Bench(CPU))
    for way in ("published", "ours, float32", "ours", "ours, float32, not compiled"):
        if way in work.ways:
            with FlopCounterMode(display=False) as counted:
                work.ways[way].run()
            assert 0.93 < counted.get_total_flops() / work.ways[way].units / work.operations < 1.45


def test_computes__name_what_they_are():
    pytest.importorskip("torch._inductor")
    found = Bench(CPU).computes()
    assert next(iter(found)).startswith("ours, float32")
    for name, compute in found.items():
        assert ("bfloat16" in name) == (compute.precision == torch.bfloat16)
        assert ("tiles" in name) == compute.tiled
        assert ("eager" in name) != compute.compiled


def test_computes__on_tiles_where_networks_are_wide():
    pytest.importorskip("torch._inductor")
    wide, narrow = (Bench(CPU, quick=quick).computes() for quick in (False, True))
    tiled = [name for name, compute in wide.items() if compute.tiled]
    assert tiled == (["ours, float32 on tiles"] if can_compile(CPU) else [])
    assert not any(compute.tiled for compute in narrow.values())


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
        for _ in range(20):
            torch.nn.functional.conv2d(images, weights).relu()

    run()  # the first time is the library's start
    found = shares(run, CPU)
    assert list(found) == [*KINDS, AROUND]
    assert sum(found.values()) == pytest.approx(1, abs=0.1)
    assert found["convolutions, products"] > 0.1
    assert found["single layers"] > 0
    assert found["fused layers"] == 0


def test_program__profile__is_of_every_way(bench: Bench, known_rates: None):
    assert all(row["profile"] is None for row in program.one("artefact", bench, 3, 0.0))
    assert all(set(row["profile"]) == {*KINDS, AROUND} for row in program.one("artefact", bench, 3, 0.0, True))


def test_apart__ways_take_turns__the_published_one_here():
    with Apart("artefact", Bench(CPU)) as process:
        work = process.ways(WORKS["artefact"](Bench(CPU)))
        assert work.ways["published"].look is None
        rows = {row.way: row for row in measure(work, warm(work, CPU, 0.0), 3, CPU, 0.0, profiled=True)}
    assert process.process.returncode == 0
    assert [len(row.seconds) for row in rows.values()] == [3, 3]
    assert all(set(row.profile or {}) == {*KINDS, AROUND} for row in rows.values())
    if platform.system() == "Linux":
        decoded = 4000 * 3 * 32 * 32 * 4
        assert decoded / 2 < (rows["ours"].memory or 0) < 4 * decoded


def test_apart__process_ends__said():
    with pytest.raises(RuntimeError, match="that measures our ways has ended"):
        Apart("no such work", Bench(CPU))


def test_apart__keeps_freed_memory_and_answers_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    told: list[str] = []
    work = Work("work", {"ours": Way(lambda: told.append("run"))})
    monkeypatch.setattr(apart, "keep_freed_memory", lambda: told.append("kept"))
    monkeypatch.setitem(apart.WORKS, "artefact", lambda bench: told.append(f"made, {bench.data}") or work)
    monkeypatch.setattr(apart, "peak_bytes", lambda run, device, kept: run() or 7)
    monkeypatch.setattr(sys, "argv", ["apart", json.dumps(["artefact", "cpu", "folder", False, False])])
    monkeypatch.setattr("sys.stdin", io.StringIO('["run", "ours"]\n["peak", "ours"]\n'))
    apart.main()
    assert told == ["kept", "made, folder", "run", "run"]
    assert capsys.readouterr().out == "answer: null\nanswer: null\nanswer: 7\n"


def test_compiling__compilers_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    took, asked = iter([9.0, 5.0, 8.0, 4.0, 7.0, 3.0]), []

    def anew(*given: str) -> float:
        asked.append(given)
        return next(took)

    monkeypatch.setattr(compiling, "anew", anew)
    file, way = tmp_path / "compile.json", "ours, float32"
    monkeypatch.setattr(sys, "argv", ["compiling", "dm-ipc1", "--ways", way, "--json", str(file)])
    compiling.main()
    assert asked == 3 * [("dm-ipc1", way, compiling.LIKE_PYTORCH), ("dm-ipc1", way, compiling.OURS)]
    assert [row["seconds"] for row in json.loads(file.read_text())["rows"]] == [[9, 8, 7], [5, 4, 3]]


@pytest.mark.parametrize(("how", "ours"), [(compiling.LIKE_PYTORCH, False), (compiling.OURS, True)])
def test_compiling__first_time_less_the_second_by_that_compiler(monkeypatch: pytest.MonkeyPatch, how: str, ours: bool):
    seen: list[bool] = []

    def episode() -> None:
        seen.append(compiler.work_out_once())
        time.sleep(0.2 if len(seen) == 1 else 0.0)

    monkeypatch.setattr(compiler, "work_out_once", lambda: True)
    monkeypatch.setitem(WORKS, "dm-ipc1", lambda _: Work("one", {"ours": Way(episode)}))
    assert 0.1 < compiling.compiled("dm-ipc1", "ours", how) < 0.5
    assert seen == [ours, ours]


def test_several__numbers_of_processes_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[int] = []

    def started(name: str, processes: int) -> dict[str, float]:
        asked.append(processes)
        return {"seconds": len(asked), "computed": 6.0 / processes, "summed": 10, "written": processes}

    monkeypatch.setattr(several, "started", started)
    file = tmp_path / "several.json"
    monkeypatch.setattr(sys, "argv", ["several", "digits", "--rounds", "2", "--json", str(file)])
    several.main()
    assert asked == [1, 2, 3, 1, 2, 3]
    rows = json.loads(file.read_text())["rows"]
    assert [row["seconds"] for row in rows] == [[1, 4], [2, 5], [3, 6]]
    assert [line[-3] for line in several.table(rows)[1:]] == ["1.00", "2.00", "3.00"]


def test_several__one_process__sends_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    *what, _ = several.WORKS["digits"]
    monkeypatch.setitem(several.WORKS, "digits", (*what, 2))
    found = several.one("digits")
    assert found["summed"] == 4 * (10 * 8 * 8 + 1)
    assert found["written"] < found["summed"]  # nothing goes to another
    assert found["seconds"] > 0
    assert json.loads(capsys.readouterr().out.removeprefix(several.ANSWER)) == found


@pytest.mark.slow
def test_several__two_processes__each_computes_less_and_the_sum_goes_between():
    alone, both = ([several.started("digits", processes) for _ in range(2)] for processes in (1, 2))
    less, more = (min(found["computed"] for found in runs) for runs in (both, alone))
    assert less < 0.9 * more
    alone, both = alone[0], both[0]
    assert alone["summed"] == both["summed"]
    assert alone["written"] < alone["summed"]
    assert both["summed"] <= both["written"] < 3 * both["summed"]


def test_names__quick_ones_are_among_them():
    assert set(QUICK) < set(WORKS)
    assert not set(plans.PLANS) & set(WORKS)


def test_program__failed_work_is_told():
    worker = program.Worker("artefact", ["--device", "nowhere"])
    worker.wait()
    (row,) = worker.rows()
    assert (row["work"], row["way"]) == ("artefact", "failed")
    assert "nowhere" in row["note"]


def surroundings(process: int) -> bytes:
    """The environment of a process, which Linux shows empty until the process has its memory."""
    for _ in range(200):
        if found := Path(f"/proc/{process}/environ").read_bytes():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"process {process} shows no environment")


@pytest.mark.parametrize("kept", [False, True])
def test_program__keeps_memory_if_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: bool):
    seen: list[bool] = []

    class Noted(program.Worker):
        def __init__(self, name: str, given: list[str], kept: bool) -> None:
            seen.append(kept)
            super().__init__("artefact", ["--device", "nowhere"], kept)
            if Path("/proc/self/environ").is_file():
                assert (b"MALLOC_TRIM_THRESHOLD_" in surroundings(self.process.pid)) == kept

    monkeypatch.setattr(program, "Worker", Noted)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    asked = ["--keep-memory"] if kept else []
    monkeypatch.setattr(
        sys, "argv", ["benchmarks", "--only", "artefact", "--json", str(tmp_path / "told.json"), *asked]
    )
    program.main()
    told = json.loads((tmp_path / "told.json").read_text())
    assert seen == [kept] == [told["kept_memory"]]
    assert pages.kind(told).endswith("-kept") == kept


def test_program__keeps_memory__by_the_gnu_library_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    with pytest.raises(SystemExit):
        program.options_of(["--keep-memory"])
    assert "GNU C library" in capsys.readouterr().err
    assert not program.options_of([]).keep_memory


def test_program__work_is_measured_when_it_is_its_turn(bench: Bench, known_rates: None):
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


@pytest.mark.parametrize("name", ["artefact", "dm-ipc1"])
def test_program__shares_are_of_the_better_rates_beside(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str):
    rates = iter([(9e11, 1e9), (1e12, 8e8)])  # before and after
    monkeypatch.setattr(program, "_rates", lambda *_: list(next(rates)))
    monkeypatch.setattr(program, "has_bfloat16", lambda device: False)
    first, *others = program.one(name, bench, 3, 0.0)
    assert first["times_faster"] == 1
    assert all(row["share_of_copy_rate"] == pytest.approx(row["moved"] / row["median"] / 1e9) for row in others)
    for row in others:
        share = row["share_of_matrix_rate"]
        assert share == (pytest.approx(row["operations"] / row["median"] / 1e12) if name == "dm-ipc1" else None)


def test_pages__hold_what_the_evidence_says():
    marked = []
    for page in pages.PAGES:
        text = page.read_text()
        marked += [found["what"] for found in pages.MARKED.finditer(text)]
        assert len(pages.MARKED.findall(text)) == text.count("<!-- benchmark: ")
        assert pages.insert(text, pages.tables()) == text, "renew it: python -m benchmarks.pages"
    assert set(marked) >= {*pages.KINDS_OF_MACHINE, "cpu-profile", "cpu-plan", "scaling", "several", "summary"}


def test_plan__says_whether_it_was_near_enough():
    assert plans._verdict("bytes", 110, 100) == "bytes: planned 110, measured 100, 1.10 times, within a factor of 1.25"
    assert "0.79 times, MISSED: a factor of 1.25" in plans._verdict("bytes", 79, 100)
    assert "2.01 times, MISSED: a factor of 2" in plans._verdict("episode_seconds", 2.01, 1)


def test_scaling__is_the_formula_of_the_page():
    model = scaling.Model(64, 4)
    assert (model.images, model.passes, model.budget) == (400, 2, 1000 * 50 * 4 * 3 * 64 * 64)
    work = model.forward * (1000 * 256 + 2 * 1000 * 400)
    assert model.computing(64) == pytest.approx(16 / 1000 * work / 50e12)
    assert model.summing(8, 5e9) == pytest.approx(2 * 7 / 8 * model.budget / 5e9)
    assert model.summing(1, 5e9) == 0


@pytest.mark.parametrize("file", sorted(pages.EVIDENCE.glob("benchmark-c*.json")), ids=lambda file: file.stem)
def test_evidence__plan_is_within_what_it_is_held_to(file: Path):
    for row in json.loads(file.read_text())["rows"]:
        for key, most in pages.WITHIN.items() if "planned" in row else ():
            if key in row["planned"]:
                assert 1 / most < row["planned"][key] / row["measured"][key] < most, (row["work"], key)
        if row["work"] == "plan-cifar100-lodm-ipc50":  # 40,000 images of 100 classes
            assert row["measured"]["bytes"] < 2**33 / 4


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
    report = {
        "device": "cpu",
        "machine": {"processor": "p", "threads": 2, "bfloat16": True},
        "versions": {"torch": "2"},
        "commit": "abc",
    }
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


def test_pages__a_second_machine_of_its_kind__has_rows_of_its_own(tmp_path: Path):
    machine = {"threads": 2, "bfloat16": False}
    report = {"device": "cpu", "versions": {"torch": "2"}, "commit": "abc", "rows": []}
    files = [pages.add(report | {"machine": machine | {"processor": name}}, tmp_path).name for name in "pqqp"]
    first, second = "benchmark-cpu-float32.json", "benchmark-cpu-float32-2.json"
    assert files == [first, second, second, first]
    for other in ({"machine": machine | {"processor": "r"}}, {"machine": machine | {"processor": "p"}, "versions": {}}):
        with pytest.raises(ValueError, match="move it away"):
            pages.add(report | other, tmp_path)


def test_pages__beside_a_gpu__the_finer_name_of_the_processor_does_not_matter(tmp_path: Path):
    report = {"device": "a GPU", "versions": {"torch": "2"}, "commit": "abc", "rows": []}
    for name in ("p", "p (family 6, model 1)"):
        pages.add(report | {"machine": {"processor": name, "threads": 2, "bfloat16": True}}, tmp_path)
    with pytest.raises(ValueError, match="move it away"):
        pages.add(report | {"machine": {"processor": "q", "threads": 2, "bfloat16": True}}, tmp_path)


def test_pages__summary__a_row_for_each_work_and_nothing_where_it_was_not_measured(tmp_path: Path):
    said = {"work": "a step", "way": "ours, float32", "times_faster": 2.04}
    (tmp_path / "benchmark-cpu.json").write_text(json.dumps({"rows": [said, said | {"way": "published"}]}))
    (tmp_path / "benchmark-cuda.json").write_text(json.dumps({"rows": [said | {"work": "another"}]}))
    assert pages.summary(tmp_path)[1:] == [("a step", "", "2.0", *[""] * 6), ("another", *[""] * 7, "2.0")]
