"""What was measured, kept as evidence and shown in the docs, and what is worked out: python -m benchmarks.pages.

Reports of ``python -m benchmarks --json`` named on the command line are added to the evidence of their device first.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import scaling, several
from benchmarks.measure import AROUND, KINDS
from condensate.atomic import replacing
from condensate.console import size

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "performance.md", ROOT / "docs" / "scale.md"
EVIDENCE = ROOT / "docs" / "evidence"
MARKED = re.compile(r"(<!-- benchmark: (?P<what>[a-z0-9-]+) -->\n)(.*?)(<!-- end of benchmark -->)", re.DOTALL)
STEPS = ("work", "way", "seconds", "min .. max", "times faster", "of the product rate", "of the copy rate", "memory")
PLANNED = (
    "recipe",
    *(
        f"{what} {how}"
        for what in ("episode", "network", "memory", "of condensing")
        for how in ("planned", "measured", "ratio")
    ),
)
# What the table at the top shows: a column's head, whose evidence, and which ways of it; "ours" where there is but one.
DIRECTLY = "ours, float32", "ours"
SUMMARY = (
    ("A: AVX-512, bfloat16", "cpu", ("ours, bfloat16",)),
    ("A, float32", "cpu", DIRECTLY),
    ("B: AVX2, on tiles", "cpu-float32-2", ("ours, float32 on tiles",)),
    ("B, directly", "cpu-float32-2", DIRECTLY),
    ("C: AVX2, on tiles", "cpu-float32", ("ours, float32 on tiles",)),
    ("C, directly", "cpu-float32", DIRECTLY),
    ("H200, bfloat16", "cuda", ("ours, bfloat16",)),
    ("H200, float32", "cuda", DIRECTLY),
)
# The factors that ``plan`` is held to. Of condensing alone half the memory is the compiler's and differs each time.
WITHIN = {"episode_seconds": 2.0, "evaluation_seconds_a_network": 2.0, "bytes": 1.25, "condense_bytes": 1.6}
NOT_MEASURED = "Not measured yet.\n"


# Of one kind two machines were measured.
KINDS_OF_MACHINE = ("cpu", "cpu-kept", "cpu-float32", "cpu-float32-2", "cpu-float32-kept", "cpu-float32-kept-2", "cuda")


def kind(report: Row) -> str:
    """Of the machine of a report: with which numbers it computes, and whether freed memory was kept."""
    numbers = "cuda" if report["device"] != "cpu" else "cpu" if report["machine"]["bfloat16"] else "cpu-float32"
    return f"{numbers}-kept" if report.get("kept_memory") else numbers


def add(report: Row, folder: Path = EVIDENCE) -> Path:
    """Put the rows of a report into the evidence of its machine, in place of older ones of the same work."""
    said = _origin(report)
    for name in (name for name in KINDS_OF_MACHINE if name.removesuffix("-2") == kind(report)):
        file = folder / f"benchmark-{name}.json"
        kept = _held(file) or report | {"rows": []}
        held = _origin(kept)
        if held["machine"] == said["machine"]:
            break
    for key in held:
        if held[key] != said[key]:
            raise ValueError(f"{file} is of {key} {held[key]}, the report of {said[key]}: move it away")
    own = [row | {"commit": row.get("commit", report["commit"])} for row in report["rows"] if row["way"] != "failed"]
    done = {row["work"] for row in own}
    rows = [*(row for row in kept["rows"] if row["work"] not in done), *own]
    with replacing(file) as part:
        part.write_text(json.dumps(kept | {"rows": rows}, indent=1) + "\n")
    return file


def _origin(report: Row) -> Row:
    """Where a report is from; beside a GPU the finer name of the processor does not matter, which older ones lack."""
    origin = {key: report[key] for key in ("device", "machine", "versions")}
    if report["device"] != "cpu":
        named = str(report["machine"]["processor"])
        origin["machine"] = report["machine"] | {"processor": named.split(" (family")[0]}
    return origin


def share(value: float | None) -> str:
    """A share in percent; empty where there is none."""
    return "" if value is None else f"{100 * value:.0f} %" if value >= 0.005 else "< 0.5 %"


def steps(rows: Sequence[Row]) -> list[Sequence[str]]:
    """Work done in several ways, the published one first."""

    lines: list[Sequence[str]] = [STEPS]
    last = ""
    for row in sorted((row for row in rows if row["seconds"]), key=lambda row: str(row["work"])):
        lines.append(
            (
                "" if row["work"] == last else row["work"],
                row["way"],
                f"{row['median']:.4g}",
                f"{min(row['seconds']):.4g} .. {max(row['seconds']):.4g}",
                f"{row['times_faster']:.2f}",
                share(row["share_of_matrix_rate"]),
                share(row["share_of_copy_rate"]),
                size(row["memory"]) if (row["memory"] or 0) >= 2**20 else "",  # of another process it is not known
            )
        )
        last = row["work"]
    return lines


def empty(folder: Path, measured: Sequence[Row] = ()) -> list[Sequence[str]]:
    """The other work that was measured on some CPU, in visibly empty lines."""
    done = {row["work"] for row in measured}
    reports = (_held(folder / f"benchmark-{machine}.json") for machine in KINDS_OF_MACHINE)
    works = {row["work"] for held in reports for row in held.get("rows", []) if row["seconds"]} - done
    return [(work, *[""] * (len(STEPS) - 1)) for work in sorted(works)]


def planned(rows: Sequence[Row]) -> list[Sequence[str]]:
    """What ``plan`` says, what it takes, and by how much that is more or less."""
    lines: list[Sequence[str]] = [PLANNED]
    for row in (row for row in rows if "planned" in row):
        told = [row["work"].removeprefix("plan-")]
        for key in WITHIN:
            if key not in row["planned"]:  # not looked at
                told += ["", "", ""]
                continue
            said, found = row["planned"][key], row["measured"][key]
            told += [size(value) if key.endswith("bytes") else f"{value:,.3g} s" for value in (said, found)]
            told.append(f"{said / found:.2f}")
        lines.append(told)
    return lines


def profiled(rows: Sequence[Row]) -> list[Sequence[str]]:
    """What the time of every way goes to, as far as that was looked at."""
    lines: list[Sequence[str]] = [("work", "way", *KINDS, AROUND)]
    last = ""
    for row in sorted((row for row in rows if row.get("profile")), key=lambda row: str(row["work"])):
        shares = [f"{100 * row['profile'][kind]:.0f} %" for kind in (*KINDS, AROUND)]
        lines.append(("" if row["work"] == last else row["work"], row["way"], *shares))
        last = row["work"]
    return lines


def tables(folder: Path = EVIDENCE) -> dict[str, str]:
    """Markdown by the name in a marker: a kind of machine, its profile and its plan; several processes; scaling."""
    found = {}
    for machine in KINDS_OF_MACHINE:
        held = _held(folder / f"benchmark-{machine}.json")
        rows = held.get("rows", [])
        unmeasured = empty(folder, rows) if machine == "cuda" else []
        told = _told(machine, held, rows) if rows else NOT_MEASURED
        found[machine] = f"{_markdown([*steps(rows), *unmeasured])}\n{told}"
        for what, key, show in (("profile", "profile", profiled), ("plan", "planned", planned)):
            some = [row for row in rows if row.get(key)]
            made = f"{_markdown(show(some))}\n{_told(machine, held, some)}" if some else NOT_MEASURED
            found[f"{machine}-{what}"] = made
    processes = _held(folder / "several-cpu.json")
    if processes:
        made = f"{_made(processes, [processes['commit']])} ([evidence](evidence/several-cpu.json))"
        found["several"] = f"{_markdown(several.table(processes['rows']))}\n{made}.\n"
    else:
        found["several"] = NOT_MEASURED
    return found | {"scaling": _markdown(scaling.table()), "summary": _markdown(summary(folder))}


def _held(file: Path) -> Row:
    """Evidence as far as there is any."""
    held: Row = json.loads(file.read_text()) if file.is_file() else {}
    return held


def summary(folder: Path = EVIDENCE) -> list[Sequence[str]]:
    """How many times faster than the published way, by work and machine; empty where it was not measured."""
    faster: dict[str, dict[str, str]] = {}
    for head, machine, ways in SUMMARY:
        for row in _held(folder / f"benchmark-{machine}.json").get("rows", []):
            if row["way"] in ways:
                faster.setdefault(row["work"], {})[head] = f"{row['times_faster']:.1f}"
    heads = [head for head, *_ in SUMMARY]
    return [("work", *heads), *((work, *(faster[work].get(head, "") for head in heads)) for work in sorted(faster))]


def _told(machine: str, held: Row, rows: Sequence[Row]) -> str:
    """Of what machine and commits rows are, and how fast it multiplied matrices beside them."""
    made = _made(held, [row["commit"] for row in rows])
    rates = [row["matrix_rates"] for row in rows if "matrix_rates" in row]
    spans = [
        f"{min(seen):,.0f} to {max(seen):,.0f} GFLOP/s in {name}"
        for name in ("float32", "bfloat16")
        if (seen := [rate[name] / 1e9 for rate in rates if name in rate])
    ]
    products = f" Products: {'; '.join(spans)}." if spans else ""
    return f"{made} (row by row in [the evidence](evidence/benchmark-{machine}.json)).{products}\n"


def _made(held: Row, commits: Sequence[str]) -> str:
    """Machine, PyTorch and commits of what was measured."""
    processor, threads = (
        held["machine"]["processor"] if held["device"] == "cpu" else held["device"],
        held["machine"]["threads"],
    )
    named = ", ".join(dict.fromkeys(commits))
    said = f"{threads} thread{'s' * (threads > 1)}, torch {held['versions']['torch']}"
    return f"{processor}, {said}, commit{'s' * (',' in named)} {named}"


def insert(text: str, found: dict[str, str]) -> str:
    """A page with the tables between its markers made anew."""
    return MARKED.sub(lambda mark: f"{mark[1]}\n{found[mark['what']]}\n{mark[4]}", text)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    return (
        "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(r)} |" for r in rows)]) + "\n"
    )


if __name__ == "__main__":
    for given in sys.argv[1:]:
        add(json.loads(Path(given).read_text()))
    for page in PAGES:
        page.write_text(insert(page.read_text(), tables()))
