"""What an episode takes in one, two and three processes, and what goes between them: python -m benchmarks.several.

Processes of this machine have one thread each, random images and nothing compiled; rounds take every number in turn.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from subprocess import PIPE, run
from typing import Any

import torch

from condensate import assemble, condense, settling
from condensate.atomic import replacing
from condensate.console import show_table
from condensate.ranks import Ranks
from condensate.records import environment
from condensate.sheets import resolve
from condensate.streams import Streams

Row = dict[str, Any]

# What each is, its recipe, what is changed of it, the shape of its images, and how many episodes are measured.
WORKS: dict[str, tuple[str, str, dict[str, Any], tuple[int, int, int], int]] = {
    "lodm": ("LoDM, CIFAR-10's shape, IPC 10", "cifar10-lodm-ipc10", {}, (3, 32, 32), 3),
    "lodsa": (
        "LoDSA, the same, one match an episode",
        "cifar10-lodsa-ipc10",
        {"objective": {"outer_loop": 1, "inner_loop": 1}},
        (3, 32, 32),
        3,
    ),
    "digits": ("LoDM, the digits' shape, IPC 1", "digits-lodm", {}, (1, 8, 8), 100),
}
PROCESSES = (1, 2, 3)
HEAD = (
    "work",
    "processes",
    "seconds an episode",
    "computed by the busiest",
    "times less computed",
    "bytes to sum",
    "bytes written by one",
)
ANSWER = "answer: "


def sent() -> int:
    """Bytes that this process has written, to files and to other processes; 0 where the system does not count them."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split("wchar:")[1].split()[0]) if counts.is_file() else 0


def one(name: str) -> Row:
    """A piece of work in this process and those that were started with it; the first episode is not counted."""
    _, recipe_name, changes, shape, episodes = WORKS[name]
    plainly = {"compute": {"compile": "never", "precision": "float32"}}
    recipe, device = resolve(recipe_name, {**changes, **plainly}), torch.device("cpu")
    ranks = Ranks.of_torchrun()
    with ranks.joined():
        data, streams = assemble.random_data(shape, device, classes=10, each=300), Streams(0)
        synthetic = assemble.start(recipe, data, streams)
        compute = settling.compute(recipe, shape, device)
        matching = assemble.objective(recipe, data, compute, streams, ranks=ranks)
        moments: list[tuple[float, float, int]] = []
        condense(
            synthetic,
            matching,
            episodes=episodes + 1,
            lr=1e-6,
            after=lambda _: moments.append((time.perf_counter(), time.process_time(), sent())),
            ranks=ranks,
        )
        took, busy, wrote = ((last - first) / episodes for first, last in zip(moments[0], moments[-1], strict=True))
        busiest, most = (max(each) for each in zip(*ranks.gather((busy, wrote)), strict=True))
    numbers = sum(parameter.numel() for parameter in synthetic.parameterization.parameters())
    summed = 4 * (numbers + 1)  # the loss goes with them
    found = {"seconds": took, "computed": busiest, "summed": summed, "written": most}
    if ranks.first:
        print(f"{ANSWER}{json.dumps(found)}", flush=True)
    return found


def started(name: str, processes: int) -> Row:
    """The same in so many processes, started for it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "benchmarks.several", "--one", name]
    said = run(command, check=True, stdout=PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}).stdout
    found: Row = json.loads(next(line for line in said.splitlines() if line.startswith(ANSWER)).removeprefix(ANSWER))
    return found


def table(rows: Sequence[Row]) -> list[Sequence[str]]:
    """Medians, and ranges, of all rounds."""
    lines: list[Sequence[str]] = [HEAD]
    last, alone = "", 0.0
    for row in rows:
        seconds, computed = row["seconds"], median(row["computed"])
        alone = computed if row["processes"] == 1 else alone
        lines.append(
            (
                "" if row["work"] == last else row["work"],
                str(row["processes"]),
                f"{median(seconds):.3g} ({min(seconds):.3g} .. {max(seconds):.3g})",
                f"{computed:.3g} s",
                f"{alone / computed:.2f}",
                f"{row['summed']:,}",
                "" if row["written"] is None else f"{row['written']:,.0f}",
            )
        )
        last = row["work"]
    return lines


def main() -> None:
    """Measure by turns, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.several", description=__doc__)
    parser.add_argument("works", nargs="*", default=list(WORKS), help=f"of {'; '.join(WORKS)}; absent: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.works) - set(WORKS):
        parser.error(f"no piece of work is called {', '.join(sorted(unknown))}; there are {'; '.join(WORKS)}")
    if options.one:
        one(options.works[0])
        return
    rows: list[Row] = []
    for work in options.works:
        rounds = [[started(work, processes) for processes in PROCESSES] for _ in range(options.rounds)]
        for processes, turns in zip(PROCESSES, zip(*rounds, strict=True), strict=True):
            row: Row = {key: [turn[key] for turn in turns] for key in ("seconds", "computed")}
            # One process alone has no other to write to.
            written = median(turn["written"] for turn in turns) if processes > 1 else None
            same = {"summed": turns[0]["summed"], "written": written}
            rows.append({"work": WORKS[work][0], "processes": processes, **row, **same})
        if options.json:  # after each, for a run that is stopped
            torch.set_num_threads(1)  # as each process has
            about = {key: held for key, held in environment(torch.device("cpu")).items() if key != "processes"}
            with replacing(options.json) as part:
                part.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    head, *lines = table(rows)
    show_table("several processes on this machine, one thread each", list(head), [list(line) for line in lines])


if __name__ == "__main__":
    main()
