"""One HTML file of what was run, read from run folders alone: pictures, accuracy, cost, and how to run it again."""

import base64
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

from condensate import summaries
from condensate.console import duration, percent, size
from condensate.errors import UserError
from condensate.figures import save_accuracies, save_losses
from condensate.recipe import Recipe, Values
from condensate.records import read_json, write
from condensate.rows import FULL
from condensate.schema import complete
from condensate.sheets import find, shipped
from condensate.summaries import Summary, Table

MOST_POINTS = 400  # of a curve; episodes beyond are averaged in blocks
NAME = "report.html"


@dataclass(frozen=True)
class Picture:
    """A PNG with words.

    Args:
        title: Above it.
        data: The file, base64.
        about: What is seen.
        drawn: Whether it is a figure, which is shown smaller than its dots.
    """

    title: str
    data: str
    about: str = ""
    drawn: bool = False


@dataclass
class Part:
    """What is shown of one folder.

    Args:
        title: The recipe's name.
        folder: As it was named.
        about: Terms and what they are here.
        headline: The main row's images per class, bytes and accuracy, where there is one.
        summary: Tables and notes; absent where nothing is finished.
        cost: Time and memory, where something is finished.
        missing: What is not finished.
        pictures: Pictures and figures.
        command: That does the same again.
        recipe: In full, as YAML.
    """

    title: str
    folder: str
    about: dict[str, str]
    command: str
    recipe: str
    headline: tuple[str, str, str] | None = None
    summary: Summary | None = None
    cost: Table | None = None
    missing: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def save_report(folders: Sequence[Path], path: Path) -> None:
    """Write an HTML file that needs no other: of runs, of their seeds, of studies, finished or not.

    Args:
        folders: Of ``condensate run`` (with or without ``--seeds``), ``continual`` or ``privacy``.
        path: Of the file.

    Raises:
        UserError: A folder holds no run, or what lies in it is damaged.
    """
    from jinja2 import Environment, StrictUndefined

    parts = [read(folder) for folder in folders]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = page.from_string((files("condensate") / NAME).read_text(encoding="utf-8"))
    title = parts[0].title if len(parts) == 1 else f"{len(parts)} runs"
    write(path, template.render(title=title, parts=parts, overview=_overview(parts)))


def read(folder: Path) -> Part:
    """What there is to show of a folder."""
    seeds = sorted((f for f in folder.glob("seed*") if _is_run(f)), key=lambda f: (len(f.name), f.name))
    if not seeds and not _is_run(folder):
        raise UserError(
            f"{folder} holds no run; name the folder that condensate run, continual or privacy gave as its run folder"
        )
    first = seeds[0] if seeds else folder
    begun = read_json(first / "environment.json")
    _, values, _ = find(str(first / "recipe.yaml"))
    recipe = complete(begun["recipe"], values)
    part = Part(
        title=recipe.name,
        folder=str(folder),
        about=_about(recipe, begun),
        command=_command(recipe, begun, len(seeds)),
        recipe=recipe.anywhere().dump(),
    )
    if begun.get("command", "run") == "run":
        _add_run(part, recipe, seeds or [folder])
    else:
        _add_study(part, folder, begun["command"])
    return part


def _is_run(folder: Path) -> bool:
    return (folder / "environment.json").is_file() and (folder / "recipe.yaml").is_file()


def _about(recipe: Recipe, begun: Values) -> dict[str, str]:
    """What was asked for, and of which machine."""
    objective, storage, machine = recipe["objective"], recipe["parameterization"], begun["machine"]
    budget = {key: value for key, value in recipe["budget"].items() if value is not None}
    episodes, versions = recipe.condense.episodes, begun["versions"]
    usual = recipe.name in shipped() and int(find(recipe.name)[1]["condense"]["episodes"])
    share = f" of the {usual:,} of the shipped recipe" if usual and usual != episodes else ""
    return {
        "data": f"{recipe['data']['name']}, scored on its {recipe.evaluate.split} images",
        "budget": ", ".join(f"{key} {value:,}" for key, value in budget.items()),
        "storage": _named(storage),
        "matched on": _named(objective),
        "start": _named(recipe["start"]),
        "network": _named(recipe["network"]),
        "episodes": f"{episodes:,}{share}",
        "machine": f"{begun['device']}, {machine['processor']}, {machine['threads']} threads"
        + (f", {begun['processes']} processes" if begun.get("processes", 1) > 1 else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        + (f", commit {begun['commit']}" if begun["commit"] else ""),
    }


def _named(section: Mapping[str, Any]) -> str:
    """A section of a recipe on one line."""
    rest = [f"{key} {value}" for key, value in section.items() if key != "name" and value is not None]
    return ", ".join([str(section["name"]), *rest])


def _command(recipe: Recipe, begun: Values, seeds: int) -> str:
    """The words that do the same again; where data and experts lie is left to the reader."""
    named = recipe.name in shipped()
    words = ["condensate", begun.get("command", "run"), recipe.name if named else "recipe.yaml"]
    for section, content in begun["overrides"].items() if named else ():
        for key, value in content.items() if isinstance(content, Mapping) else [("", content)]:
            place = (section, key) in (("data", "path"), ("experts", "store"))
            words += [f"--{section}.{key}" if key else f"--{section}", "DIR" if place and value else _word(value)]
    words += ["--seeds", str(seeds)] if seeds else []
    words += ["--smoke"] if begun["smoke"] else []
    return shlex.join(words)


def _word(value: Any) -> str:
    """A value as the command line reads it."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def _add_run(part: Part, recipe: Recipe, folders: Sequence[Path]) -> None:
    """Rows of a run over its seeds: those finished under every seed, and where the others are."""
    rows: dict[str, list[Path]] = {recipe.name: list(folders)}
    rows |= {row: [folder / "compare" / row for folder in folders] for row in recipe["compare"]}
    done: dict[str, list[Values]] = {}
    for row, places in rows.items():
        found = [read_json(place / "result.json") for place in places if (place / "result.json").is_file()]
        if len(found) == len(places):
            done[row] = found
        missing = [place for place in places if not (place / "result.json").is_file()]
        part.missing += [_how_far(row, place) for place in missing]
    if done:
        results = [{row: found[number] for row, found in done.items()} for number in range(len(folders))]
        part.summary, part.cost = summaries.of_run("accuracy", results), _cost(done)
        part.pictures.append(
            _drawn(save_accuracies, _accuracies(done), "accuracy", "a dot a network, a bar their mean")
        )
    if recipe.name in done:
        part.headline = _headline(done[recipe.name])
        hashes = [result["artefact_sha256"][:12] for result in done[recipe.name]]
        part.about["artefact"] = f"synthetic.safetensors, SHA-256 {', '.join(hashes)} (first 12 digits)"
    for row, places in rows.items():
        if (places[0] / "images.png").is_file():
            part.pictures.append(_file(places[0] / "images.png", f"images of {row}"))
    losses = {row: [*filter(None, (_losses(_log(place)) for place in places))] for row, places in rows.items()}
    losses = {row: lines for row, lines in losses.items() if lines}
    if losses:
        part.pictures.append(_drawn(save_losses, losses, "loss", "by episode, a line a seed; long runs in block means"))


def _how_far(row: str, folder: Path) -> str:
    """Where a row stands that is not finished."""
    if (folder / "synthetic.safetensors").is_file():
        return f"{row}, {folder}: condensed, not scored yet"
    done = len(_log(folder))
    return f"{row}, {folder}: {f'{done:,} episodes logged' if done else 'nothing done yet'}"


def _headline(results: Sequence[Values]) -> tuple[str, str, str]:
    stored, scores = results[0]["stored"], [result["evaluation"][0] for result in results]
    networks = sum(len(score["accuracies"]) for score in scores)
    count = f"{len(results)} seeds, {networks} networks" if len(results) > 1 else f"{networks} networks"
    return (
        f"{stored['images_per_class']:,}",
        size(stored["tensor_bytes"]),
        f"{percent(mean(score['mean'] for score in scores), None)} % ({count})",
    )


def _cost(done: Mapping[str, Sequence[Values]]) -> Table:
    """Time and memory of every row, the mean over seeds."""
    rows = []
    for row, results in done.items():
        on_experts = mean(result.get("experts_seconds", 0.0) for result in results)
        rows.append(
            [
                row,
                duration(mean(result["seconds"] for result in results)),
                duration(on_experts) if on_experts else "",
                size(max(result["peak_bytes"] for result in results)),
                "" if row == FULL else size(results[0]["stored"]["file_bytes"]),
            ]
        )
    columns = ["", "condensed and scored", "experts made", "peak memory", "file"]
    return Table("what it took, a seed", columns, rows)


def _accuracies(done: Mapping[str, Sequence[Values]]) -> dict[str, list[float]]:
    """Of all networks of all seeds, by row and network."""
    found: dict[str, list[float]] = {}
    several = len({score["network"] for results in done.values() for score in results[0]["evaluation"]}) > 1
    for row, results in done.items():
        for result in results:
            for score in result["evaluation"]:
                name = f"{row}, {score['network']}" if several else row
                found.setdefault(name, []).extend(score["accuracies"])
    return found


def _log(folder: Path) -> list[Values]:
    """What ``log.jsonl`` says, an episode each; a last line that is half written is left out."""
    file = folder / "log.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{file} is damaged; delete it to have a report without it") from error


def _losses(log: Sequence[Values]) -> tuple[list[float], list[float]] | None:
    """Episodes and losses of a log, in blocks if there are many."""
    block = -(-len(log) // MOST_POINTS)
    blocks = [log[first : first + block] for first in range(0, len(log), block or 1)]
    if not blocks:
        return None
    episodes, losses = ([mean(line[key] for line in held) for held in blocks] for key in ("episode", "loss"))
    return episodes, losses


def _add_study(part: Part, folder: Path, command: str) -> None:
    """Tables and figures of a study, where it is finished."""
    file = folder / "result.json"
    if not file.is_file():
        part.missing.append(f"{folder}: go on with it by condensate {command} --resume {folder}")
        return
    told = {"continual": summaries.of_stream, "privacy": summaries.of_attack}[command]
    part.summary = told(read_json(file))
    figures = sorted(folder.glob("*.png"), key=lambda file: (not file.name.startswith(("curves", "roc")), file.name))
    part.pictures += [_file(figure, figure.stem.replace("-", " ")) for figure in figures]


def _overview(parts: Sequence[Part]) -> Table | None:
    """The main rows of several runs side by side."""
    if len(parts) == 1:
        return None
    rows = [[part.title, part.folder, *(part.headline or ("", "", ""))] for part in parts]
    return Table("all of them", ["", "folder", "images/class", "bytes", "accuracy"], rows)


def _file(path: Path, title: str) -> Picture:
    return Picture(title, base64.b64encode(path.read_bytes()).decode(), drawn=not title.startswith("images"))


def _drawn(draw: Any, what: Any, title: str, about: str) -> Picture:
    """A figure that is drawn for the page."""
    buffer = io.BytesIO()
    draw(what, buffer)
    return Picture(title, base64.b64encode(buffer.getvalue()).decode(), about, drawn=True)
