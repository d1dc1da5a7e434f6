"""How long programs compile, by PyTorch's compiler as it is and as ours has it: python -m benchmarks.compiling WORK ...

Every compilation has a process of its own that finds nothing compiled before; its seconds are those of the first time,
all that is imported and prepared for it included, less those of the second.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from subprocess import PIPE, run
from typing import Any

import torch

from benchmarks.works import WORKS, Bench
from condensate import compiler
from condensate.console import show_table
from condensate.records import environment

LIKE_PYTORCH, OURS = "as PyTorch has it", "ours"


def compiled(name: str, way: str, how: str) -> float:
    """Seconds that a way of a piece of work compiles in this process."""
    if how == LIKE_PYTORCH:
        compiler.work_out_once = lambda: False  # type: ignore[assignment]
    episode = WORKS[name](Bench(torch.device("cpu"))).ways[way].run
    moments = []
    for _ in range(2):
        began = time.perf_counter()
        episode()
        moments.append(time.perf_counter() - began)
    return moments[0] - moments[1]


def anew(*asked: str) -> float:
    """The same, in a process of its own with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.compiling", "--one", *asked]
        surroundings = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder}
        *_, last = run(command, check=True, stdout=PIPE, text=True, env=surroundings).stdout.split()
    return float(last)


def main() -> None:
    """Measure by turns, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiling", description=__doc__)
    parser.add_argument("works", nargs="+", help="pieces of work, as in python -m benchmarks --only")
    parser.add_argument("--ways", nargs="+", default=["ours, float32", "ours, float32 on tiles"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(compiled(*options.works))
        return
    if unknown := set(options.works) - set(WORKS):
        parser.error(f"no piece of work is called {', '.join(sorted(unknown))}; there are {', '.join(WORKS)}")
    rows: list[dict[str, Any]] = []
    for work in options.works:
        for way in options.ways:
            found: dict[str, list[float]] = {how: [] for how in (LIKE_PYTORCH, OURS)}
            for _ in range(options.turns):
                for how, seconds in found.items():
                    seconds.append(anew(work, way, how))
            rows += [{"work": work, "way": way, "compiler": how, "seconds": found[how]} for how in found]
            if options.json:
                content = {**environment(torch.device("cpu")), "rows": rows}
                options.json.write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        [row["work"], row["way"], row["compiler"], f"{median(row['seconds']):.0f}",
         f"{min(row['seconds']):.0f} .. {max(row['seconds']):.0f}"]
        for row in rows
    ]  # fmt: skip
    show_table("seconds of compilation", ["work", "way", "compiler", "median", "min .. max"], lines)


if __name__ == "__main__":
    main()
