"""The published way against ours, in one run on one machine: python -m benchmarks [--data FOLDER] [--device cuda].

Prints one table and, with --json, writes it with machine, versions and commit. Every piece of work has a process of its
own and the machine's rates measured beside it; times are medians of interleaved repeats.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from subprocess import PIPE
from typing import Any

import torch

from benchmarks import pages
from benchmarks.apart import Apart
from benchmarks.measure import Work, copy_rate, matrix_rate, measure, show_fused, warm
from benchmarks.plans import PLANS, check
from benchmarks.works import QUICK, WORKS, Bench
from condensate.capabilities import has_bfloat16
from condensate.console import show_table, size
from condensate.records import environment

Row = dict[str, Any]


def one(
    name: str,
    bench: Bench,
    repeats: int,
    patience: float,
    profiled: bool = False,
    turn: Callable[[], object] = lambda: None,
    apart: bool = False,
) -> list[Row]:
    """A piece of work measured in this process, with the machine's rates beside it, when it is its ``turn``.

    Our ways may be done in a process ``apart``, which keeps freed memory as our programs do.
    """
    if name in PLANS:
        turn()
        return [check(name, bench.device)]
    if profiled:
        show_fused()
    work = WORKS[name](bench)
    if not work.ways:
        turn()
        return [{"work": work.name, "way": "not measured", "seconds": [], "note": work.note}]
    if apart:
        with Apart(name, bench, profiled) as process:
            return _measured(process.ways(work), bench, repeats, patience, profiled, turn)
    return _measured(work, bench, repeats, patience, profiled, turn)


def _measured(
    work: Work, bench: Bench, repeats: int, patience: float, profiled: bool, turn: Callable[[], object]
) -> list[Row]:
    """The rows of a piece of work."""
    first = warm(work, bench.device, patience)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    turn()
    precisions = {"float32": torch.float32}
    if has_bfloat16(bench.device):
        precisions["bfloat16"] = torch.bfloat16
    before = _rates(precisions, bench.device)
    found = measure(work, first, repeats, bench.device, patience, profiled)
    after = before if bench.quick else _rates(precisions, bench.device)
    # Of both the better: what else runs can only slow them down.
    *rates_seen, copied = (max(pair) for pair in zip(before, after, strict=True))
    rates = dict(zip(precisions, rates_seen, strict=True))
    base = found[0].median
    return [
        {
            **asdict(row),
            "median": row.median,
            "times_faster": base / row.median,
            "share_of_matrix_rate": row.operations / row.median / rates[row.precision] if row.operations else None,
            "share_of_copy_rate": row.moved / row.median / copied if row.moved else None,
            "matrix_rates": rates,
            "copy_rate": copied,
        }
        for row in found
    ]


def _rates(precisions: dict[str, torch.dtype], device: torch.device) -> list[float]:
    """Of matrix products in every precision, and of a copy."""
    return [*(matrix_rate(dtype, device) for dtype in precisions.values()), copy_rate(device)]


READY, GO = "ready", "go"


def told_to() -> None:
    """Say that all is compiled, and wait for the word to measure."""
    print(READY, flush=True)
    if sys.stdin.readline().strip() != GO:
        raise SystemExit("the benchmark ended before it was this work's turn")


# By the GNU C library's own variables: large blocks, too, come from memory that is kept.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


class Worker:
    """A process of its own for a piece of work, which compiles at once and measures when it is told to.

    What ``plan`` says is held against a first run, which finds nothing compiled.
    """

    def __init__(self, name: str, given: Sequence[str], kept: bool = False) -> None:
        self.name, self.folder, self.ready = name, tempfile.TemporaryDirectory(), False
        self.file, self.said = Path(self.folder.name) / "rows.json", Path(self.folder.name) / "said"
        command = [sys.executable, "-m", "benchmarks", *given, "--one", name, "--json", str(self.file)]
        fresh = {"TORCHINDUCTOR_CACHE_DIR": str(Path(self.folder.name) / "compiled")} if name in PLANS else {}
        surroundings = os.environ | fresh | (KEPT if kept else {})
        with self.said.open("w") as said:
            self.process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=said, text=True, env=surroundings)

    def wait(self) -> None:
        """Until it is ready, or failed."""
        assert self.process.stdout is not None
        while not self.ready and (line := self.process.stdout.readline()):
            self.ready = line.strip() == READY

    def rows(self) -> list[Row]:
        """What it measures now; what it was is told where it fails."""
        with self.folder:
            self.process.communicate(GO + "\n")
            if self.process.returncode:
                said = self.said.read_text()
                print(said, file=sys.stderr)
                note = (said.strip().splitlines() or [""])[-1]
                return [{"work": self.name, "way": "failed", "seconds": [], "note": note}]
            rows: list[Row] = json.loads(self.file.read_text())
        return rows


def shown(row: Row) -> list[str]:
    """The cells of a row."""
    seconds = row["seconds"]
    if not seconds:
        return [row["work"], row["way"], *[""] * 7]

    low, high = min(seconds), max(seconds)
    faster = "" if row["times_faster"] is None else f"{row['times_faster']:.2f}"
    memory = "" if row["memory"] is None else size(row["memory"])
    return [
        row["work"], row["way"], f"{row['median']:.4g}", f"{low:.4g} .. {high:.4g}", faster,
        pages.share(row.get("share_of_matrix_rate")), pages.share(row.get("share_of_copy_rate")),
        f"{row['first']:.3g}", memory,
    ]  # fmt: skip


COLUMNS = ["work", "way", "seconds", "min .. max", "faster", "of product rate", "of copy rate", "first", "memory"]


def options_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", help="folder with CIFAR-10's train.parquet and test.parquet; absent: random images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7, help="at most, at least three (default 7)")
    parser.add_argument("--patience", type=float, default=60, help="seconds for the repeats of one work (default 60)")
    parser.add_argument("--profile", action="store_true", help="also say what the time of every way goes to")
    parser.add_argument("--together", action="store_true", help="compile all works at once, then measure one by one")
    parser.add_argument("--quick", action="store_true", help="few works, narrow networks, three repeats: two minutes")
    kept = "with glibc: freed memory is kept for what comes next, all ways alike"
    parser.add_argument("--keep-memory", action="store_true", help=kept)
    parser.add_argument("--only", nargs="+", choices=[*WORKS, *PLANS], help="absent: all")
    parser.add_argument("--one", choices=[*WORKS, *PLANS], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the table here, too")
    options = parser.parse_args(given)
    if options.keep_memory and platform.libc_ver()[0] != "glibc":
        parser.error("--keep-memory is a setting of the GNU C library, which this Python does not run on")
    return options


def main() -> None:
    """Measure, print, write."""
    options = options_of()
    bench = Bench(torch.device(options.device), options.data, options.quick)
    repeats = 3 if options.quick else max(3, options.repeats)
    patience = min(options.patience, 10) if options.quick else options.patience
    if options.one:
        rows = one(options.one, bench, repeats, patience, options.profile, told_to, apart=bench.device.type == "cpu")
        options.json.write_text(json.dumps(rows))
        return
    given = ["--device", options.device, "--repeats", str(repeats), "--patience", str(patience)]
    given += ["--data", options.data] if options.data else []
    given += ["--quick"] if options.quick else []
    given += ["--profile"] if options.profile else []
    names = options.only or (QUICK if options.quick else [*WORKS, *PLANS])
    workers: Iterable[Worker] = (Worker(name, given, options.keep_memory) for name in names)
    if options.together:
        workers = list(workers)
        for worker in workers:
            worker.wait()
    rows = []
    for worker in workers:
        print(f"measuring {worker.name}", file=sys.stderr, flush=True)
        worker.wait()
        rows += worker.rows()
        if options.json:  # after each, for a run that is stopped
            options.json.parent.mkdir(parents=True, exist_ok=True)
            asked = {"quick": options.quick, "kept_memory": options.keep_memory}
            images = "CIFAR-10, other shapes at random" if options.data else "at random"
            content = {"images": images, **asked, **environment(bench.device)}
            options.json.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n")
    networks = f"ConvNets of width {bench.width}, {bench.batch_real} real images a class"
    show_table(f"{networks}, {torch.get_num_threads()} threads", COLUMNS, [shown(row) for row in rows])
    if options.profile:
        head, *lines = pages.profiled(rows)
        show_table("what the time goes to", head, lines)
    for rate in ("float32", "bfloat16"):
        seen = [row["matrix_rates"][rate] for row in rows if rate in row.get("matrix_rates", {})]
        if seen:
            print(f"matrix products in {rate}: {median(seen) / 1e9:.0f} GFLOP/s")
    for row in rows:
        if row.get("note"):
            print(f"{row['work']}, {row['way']}: {row['note']}")


if __name__ == "__main__":
    main()
