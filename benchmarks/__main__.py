"""The published way against ours, in one run on one machine: python -m benchmarks [--data FOLDER] [--device cuda].

Prints one table and, with --json, writes it with machine, versions and commit. Every piece of work has a process of its
own and the machine's rates measured beside it; times are medians of interleaved repeats.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import pages
from benchmarks.measure import copy_rate, matrix_rate, measure, show_fused
from benchmarks.plans import PLANS, check
from benchmarks.works import QUICK, WORKS, Bench
from condensate.compute import has_bfloat16
from condensate.console import show_table, size
from condensate.records import environment

Row = dict[str, Any]


def one(name: str, bench: Bench, repeats: int, patience: float, profiled: bool = False) -> list[Row]:
    """A piece of work measured in this process, with the machine's rates beside it."""
    if name in PLANS:
        return [check(name, bench.device)]
    if profiled:
        show_fused()
    work = WORKS[name](bench)
    if not work.ways:
        return [{"work": work.name, "way": "not measured", "seconds": [], "note": work.note}]
    rates = {"float32": matrix_rate(torch.float32, bench.device)}
    if has_bfloat16(bench.device):
        rates["bfloat16"] = matrix_rate(torch.bfloat16, bench.device)
    copied = copy_rate(bench.device)
    found = measure(work, repeats, bench.device, patience, profiled)
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


def in_a_process(name: str, given: Sequence[str]) -> list[Row]:
    """A piece of work measured in a process of its own; what it was is told where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks", *given, "--one", name, "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return [
                {"work": name, "way": "failed", "seconds": [], "note": (done.stderr.strip().splitlines() or [""])[-1]}
            ]
        rows: list[Row] = json.loads(file.read_text())
    return rows


def shown(row: Row) -> list[str]:
    """The cells of a row."""
    seconds = row["seconds"]
    if not seconds:
        return [row["work"], row["way"], *[""] * 7]

    def share(key: str) -> str:
        value = row.get(key)
        return "" if value is None else f"{100 * value:.0f} %" if value >= 0.005 else "< 0.5 %"

    low, high = min(seconds), max(seconds)
    faster = "" if row["times_faster"] is None else f"{row['times_faster']:.2f}"
    memory = "" if row["memory"] is None else size(row["memory"])
    return [
        row["work"], row["way"], f"{row['median']:.4g}", f"{low:.4g} .. {high:.4g}", faster,
        share("share_of_matrix_rate"), share("share_of_copy_rate"), f"{row['first']:.3g}", memory,
    ]  # fmt: skip


COLUMNS = ["work", "way", "seconds", "min .. max", "faster", "of product rate", "of copy rate", "first", "memory"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", help="folder with CIFAR-10's train.parquet and test.parquet; absent: random images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7, help="at most, at least three (default 7)")
    parser.add_argument("--patience", type=float, default=60, help="seconds for the repeats of one work (default 60)")
    parser.add_argument("--profile", action="store_true", help="also say what the time of every way goes to")
    parser.add_argument("--graphs", action="store_true", help="also replay compiled programs as CUDA graphs")
    parser.add_argument("--quick", action="store_true", help="few works, narrow networks, three repeats: two minutes")
    parser.add_argument("--only", nargs="+", choices=[*WORKS, *PLANS], help="absent: all")
    parser.add_argument("--one", choices=[*WORKS, *PLANS], help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the table here, too")
    options = parser.parse_args()
    bench = Bench(torch.device(options.device), options.data, options.quick, options.graphs)
    repeats = 3 if options.quick else max(3, options.repeats)
    if options.one:
        options.json.write_text(json.dumps(one(options.one, bench, repeats, options.patience, options.profile)))
        return
    given = ["--device", options.device, "--repeats", str(repeats), "--patience", str(options.patience)]
    given += ["--data", options.data] if options.data else []
    given += ["--quick"] if options.quick else []
    given += ["--graphs"] if options.graphs else []
    given += ["--profile"] if options.profile else []
    rows: list[Row] = []
    for name in options.only or (QUICK if options.quick else [*WORKS, *PLANS]):
        print(f"measuring {name}", file=sys.stderr, flush=True)
        rows += in_a_process(name, given)
        if options.json:  # after each, for a run that is stopped
            options.json.parent.mkdir(parents=True, exist_ok=True)
            content = {"real_images": options.data is not None, "quick": options.quick, **environment(bench.device)}
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
