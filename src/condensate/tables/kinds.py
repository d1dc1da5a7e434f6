"""How each kind of table is laid out: a head and lines of text, from the results alone."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from condensate.console import duration, percent, size
from condensate.objectives import OBJECTIVES
from condensate.recipe import Values
from condensate.records import read_json
from condensate.rows import FULL
from condensate.tables import evidence
from condensate.tables.evidence import Estimate, Quoted, compare, estimate
from condensate.tables.layout import CONTINUAL, COST, NETWORKS, PAIRS, STUDY, VARIANTS, Cell, Table, tables

Lines = list[Sequence[str]]

CALLED = {
    "random": "random real images",
    "random-uint8": "random real images, uint8",
    "full": "all training images",
    "finetune": "fine-tuning, no memory",
}
ACROSS = 4  # variants that stand beside each other at most; more stand below each other
METHODS = tuple(f"{low}{method}" for method in ("dm", "dc", "dsa", "mtt") for low in ("", "lo"))


def _pairs(table: Table, results: Path, quoted: Quoted) -> Lines:
    def row(label: str, cells: Iterable[Cell | None]) -> tuple[str, ...]:
        return label, *(
            _shown(_of(table, results, cell), _images(table, results, cell)) if cell else "" for cell in cells
        )

    lines: Lines = [("", *table.columns)]
    for method in table.methods:
        name = method.upper()
        base, low = ([table.cell(r) if r else None for r in table.recipes(m)] for m in (method, f"lo{method}"))
        lines += [row(name, base), row(f"Lo{name}", low)]
        pairs = zip(low, base, strict=True)
        gaps = [compare(_of(table, results, a), _of(table, results, b)) if a and b else None for a, b in pairs]
        lines.append((f"Lo{name} is better by", *map(_gap, gaps)))
        originals = [table.original(recipe) for recipe in table.recipes(method)]
        if any(originals):
            lines.append(row(f"{name}, its paper's setting", [table.cell(r) if r else None for r in originals]))
        own = [original or recipe for original, recipe in zip(originals, table.recipes(method), strict=True)]
        lines += _cited(table, quoted, name, own)
    recipes = table.recipes(table.methods[0])
    for baseline in table.baselines:
        of_each = [recipes[0]] + [None] * (len(recipes) - 1) if baseline == FULL else recipes
        name = CALLED.get(baseline, baseline)
        lines.append(row(name, [table.cell(r, row=baseline) if r else None for r in of_each]))
        lines += _cited(table, quoted, name, of_each, baseline)
    return lines


def _cited(table: Table, quoted: Quoted, name: str, recipes: Sequence[str | None], row: str | None = None) -> Lines:
    """A line of quoted numbers, which are of full runs and stand beside such alone; none where none is held."""
    if table.profile is None or table.profile.fraction != 1.0:
        return []
    cited = [quoted(recipe, row) for recipe in recipes]
    return [(f"{name}, quoted", *cited)] if any(cited) else []


def _variants(table: Table, results: Path, quoted: Quoted) -> Lines:
    lines: Lines = [("", *table.variants)]
    for label, recipe in table.rows.items():
        cells = [table.cell(recipe, variant=variant) for variant in table.variants]
        lines.append((label, *(_shown(_of(table, results, cell), _images(table, results, cell)) for cell in cells)))
    return lines if len(table.variants) <= ACROSS else list(zip(*lines, strict=True))


def _networks(table: Table, results: Path, quoted: Quoted) -> Lines:
    cells = {label: table.seeds_of(table.cell(recipe)) for label, recipe in table.rows.items()}
    found = [evidence.read(results, cell) for those in cells.values() for cell in those]
    names = list(dict.fromkeys(score["network"] for result in found if result for score in result["evaluation"]))
    rows = [(label, *(_shown(estimate(results, those, name)) for name in names)) for label, those in cells.items()]
    return [("", *names) if names else ("", "not run yet"), *(row if names else (*row, "") for row in rows)]


def _continual(table: Table, results: Path, quoted: Quoted) -> Lines:
    lines: Lines = [("", *(f"{label}, {what}" for label in table.columns for what in ("last step", "mean over steps")))]
    for method in table.methods:
        shown = []
        for recipe in table.recipes(method):
            study = evidence.read(results, table.cell(recipe)) if recipe else None
            own = study["rows"][study["recipe"]] if study else None
            for what in ("final", "average_incremental"):
                orders = f" ({len(own[what]['values'])})" if own else ""
                shown.append(f"{percent(own[what]['mean'], own[what]['std'])}{orders}" if own else "")
        lines.append((_spoken(method), *shown))
    return lines


def _cost(table: Table, results: Path, quoted: Quoted) -> Lines:
    lines: Lines = [("cell", "runs", "time, condensing and scoring", "experts", "peak memory", "machine")]
    for name in table.of:
        for cell in tables()[name].cells():
            found = [evidence.read(results, each) for each in tables()[name].seeds_of(cell)]
            runs = [result for result in found if result]
            if runs:
                lines.append((f"{cell.profile.name}: {cell.name}", str(len(runs)), *_paid(runs)))
    return lines


def _study(table: Table, results: Path, quoted: Quoted) -> Lines:
    file = results / table.study
    if not file.is_file():
        return [("memory", "not run yet")]
    found = read_json(file)
    head = ["memory", "images"]
    if not table.brief:
        first = next(iter(found["rows"].values()))
        head += [*(f"{point['classes_seen']} classes" for point in first["curve"][:-1])]
    head.append("all classes")
    head += [] if table.brief else ["mean over steps", "forgetting"]
    lines: Lines = [[*head, f"{_spoken(_method(found['recipe']))} is better by"]]
    for row, own in found["rows"].items():
        points = own["curve"][-1:] if table.brief else own["curve"]
        shown = [percent(point["mean"], point["std"]) for point in points]
        if not table.brief:
            over = (own["average_incremental"], own["forgetting"])
            shown += ["" if value is None else percent(value["mean"], value["std"]) for value in over]
        images = own["curve"][-1]["images"]
        name = _spoken(_method(row))
        lines.append([name, f"{images:,}" if images else "", *shown, _gap(found["differences"].get(row))])
    return lines


KINDS: dict[str, Callable[[Table, Path, Quoted], Lines]] = {
    PAIRS: _pairs,
    VARIANTS: _variants,
    NETWORKS: _networks,
    CONTINUAL: _continual,
    COST: _cost,
    STUDY: _study,
}


def _of(table: Table, results: Path, cell: Cell) -> Estimate | None:
    return estimate(results, table.seeds_of(cell))


def _images(table: Table, results: Path, cell: Cell) -> int | None:
    """Images a class of a cell, as stored."""
    found = [result for each in table.seeds_of(cell) if (result := evidence.read(results, each))]
    return found[0]["stored"]["images_per_class"] if found else None


def _shown(found: Estimate | None, images: int | None = None) -> str:
    """An accuracy with its spread, images a class and both n, seeds x networks; empty where nothing was run."""
    if found is None:
        return ""
    count = f"{len(found.values)} x {found.networks}"
    return f"{percent(found.mean, found.std)} ({f'{_counted(images)}; ' if images else ''}{count})"


def _counted(images: float) -> str:
    """How many images."""
    return "1 image" if images == 1 else f"{images:g} images"


def _gap(found: Values | None) -> str:
    """A difference in points, with its interval where there are seeds to tell it from."""
    if found is None:
        return ""
    if found["low"] is None:
        return f"{100 * found['mean']:+.1f} (one seed)"
    return f"{100 * found['mean']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"


def _spoken(method: str) -> str:
    """The name of a method or baseline as it is read."""
    if method not in METHODS:
        return CALLED.get(method, method)
    return f"Lo{method[2:].upper()}" if method.startswith("lo") else method.upper()


def _method(name: str) -> str:
    """The method in a recipe's name; a baseline is its own."""
    return next((part for part in name.split("-") if part in METHODS), name)


def _paid(runs: Sequence[Values]) -> tuple[str, ...]:
    """What runs of a cell took, their mean; of time those that took no real features from other runs."""

    def over(key: str, runs: Sequence[Values] = runs) -> float:
        return sum(float(run.get(key) or 0) for run in runs) / len(runs)

    own = [run for run in runs if not _shares(run)]
    seconds = duration(over("seconds", own)) if own else ""
    experts = duration(over("experts_seconds")) if over("experts_seconds") else ""
    return seconds, experts, size(over("peak_bytes")), ", ".join(sorted({_machine(r) for r in runs}))


def _shares(run: Values) -> bool:
    """Whether the run may have taken real features from others, so that its time is of less than its work."""
    values = run["values"]
    shares = run["compute"].get("reuse") and OBJECTIVES[values["objective"]["name"]].keeps
    return bool(shares and values["condense"]["episodes"])


def _machine(run: Values) -> str:
    name = run["device"] if run["device"] != "cpu" else run["machine"]["processor"]
    return name if run["device"] != "cpu" else f"{name}, {run['machine']['threads']} threads"


def told(table: Table, results: Path) -> str:
    """What the numbers of a table are of: how they were made, on what, and how many are missing."""
    if table.kind == STUDY:
        file = results / table.study
        return _of_study(read_json(file)) if file.is_file() else ""
    if table.profile is None:
        said = ["Means over the runs of a cell, of time those that took no real features from others."]
        said.append("Other work may have shared the machine.")
        return " ".join([*said, "Memory: on a CPU of the process, on a GPU of tensors."])
    cells = [each for cell in table.cells() for each in table.seeds_of(cell)]
    runs = [result for cell in cells if (result := evidence.read(results, cell))]
    said = [f"Every run {table.profile.about}; {len(runs)} of {len(cells)} done."]
    if runs:
        torch, commits = (_list(found) for found in zip(*((r["versions"]["torch"], r["commit"]) for r in runs)))
        said.append(f"On {_list(_machine(run) for run in runs)}; torch {torch}; commit {commits}.")
    return " ".join(said)


def _of_study(found: Values) -> str:
    orders = len(found["orders"])
    networks = next(iter(found["rows"].values()))["curve"][-1]["networks"] // orders
    return (
        f"± over {orders} class orders of {networks} networks each; differences at the last step, by class order. "
        f"{100 * found['fraction']:g} % of the recipe's episodes, {found['budget']} budget. On {_machine(found)}; "
        f"torch {found['versions']['torch']}; commit {found['commit']}."
    )


def _list(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))
