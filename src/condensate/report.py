"""One HTML file of what was run, read from run folders alone: pictures, accuracy, cost, and how to run it again."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from condensate import provenance, summaries
from condensate.console import counted, duration, percent, size
from condensate.errors import UserError
from condensate.figures import save_accuracies, save_losses
from condensate.recipe import Recipe, Values
from condensate.records import read_json, write
from condensate.rows import FULL
from condensate.runs import seed_folders
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


class Headline(NamedTuple):
    """The main row in short.

    Args:
        data: Name and split of the images that score.
        network: The first that scores.
        images_per_class: Of the set.
        bytes: Of its tensors.
        accuracy: In percent, with its spread over seeds, or over networks where there is one seed.
        over: How many seeds and networks.
    """

    data: str
    network: str
    images_per_class: str
    bytes: str
    accuracy: str
    over: str


@dataclass
class Part:
    """What is shown of one folder.

    Args:
        title: The recipe's name.
        folder: As it was named.
        about: Terms and what they are here.
        words: That do the same again, an option with its value each.
        beside: What must lie beside for that.
        headline: Of the main row, where it is finished and no smoke run.
        summary: Tables and notes; absent where nothing is finished.
        cost: Time and memory, where something is finished.
        missing: What is not finished.
        pictures: Pictures and figures.
        recipe: In full, as YAML.
    """

    title: str
    folder: str
    about: dict[str, str]
    words: list[str]
    beside: str
    recipe: str
    headline: Headline | None = None
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
    seeds = [seed for seed in seed_folders(folder) if _is_run(seed)]
    if not seeds and not _is_run(folder):
        raise UserError(
            f"{folder} holds no run; name the folder that condensate run, continual or privacy gave as its run folder"
        )
    run = folder.absolute().parent.parent
    if folder.absolute().parent.name == "compare" and _is_run(run):
        raise UserError(f"{folder} is a row of the run in {run}: name that")
    try:
        return _read(folder, seeds)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is damaged, or of another version of condensate: {error!r}") from error


def _read(folder: Path, seeds: Sequence[Path]) -> Part:
    first = seeds[0] if seeds else folder
    begun = read_json(first / "environment.json")
    _, values, _ = find(str(first / "recipe.yaml"))
    recipe = complete(begun["recipe"], values)
    named = recipe.name in shipped()
    part = Part(
        title=recipe.name,
        folder=str(folder),
        about=provenance.about(recipe, begun),
        words=provenance.words(recipe, begun, len(seeds)),
        beside="" if named else f", the recipe below saved as {recipe.name}.yaml",
        recipe=replace(recipe, values=provenance.elsewhere(recipe.values)).dump(),
    )
    if begun.get("command", "run") == "run":
        _add_run(part, recipe, seeds or [folder], begun["smoke"])
        if part.missing:
            part.missing.append(f"go on with it: condensate run --resume {folder}")
    else:
        _add_study(part, folder, begun["command"])
    return part


def _is_run(folder: Path) -> bool:
    return (folder / "environment.json").is_file() and (folder / "recipe.yaml").is_file()


def _add_run(part: Part, recipe: Recipe, folders: Sequence[Path], smoke: bool) -> None:
    """Rows of a run over its seeds, as far as they are finished, and where the others are."""
    rows: dict[str, list[Path]] = {recipe.name: list(folders)}
    rows |= {row: [folder / "compare" / row for folder in folders] for row in recipe["compare"]}
    found = {row: [_result(place) for place in places] for row, places in rows.items()}
    part.missing = [
        _how_far(row, place, recipe.evaluate.repeats)
        for row, places in rows.items()
        for place, result in zip(places, found[row], strict=True)
        if result is None
    ]
    shown = [number for number, result in enumerate(found[recipe.name]) if result]  # seeds
    done = {row: [result for n in shown if (result := held[n])] for row, held in found.items()}
    done = {row: held for row, held in done.items() if len(held) == len(shown)}
    if shown:
        _add_results(part, recipe, done, smoke)
        if len(shown) < len(folders):
            part.missing.append(f"shown are {len(shown)} of {len(folders)} seeds: those whose set is scored")
    several = f", {folders[0].name}" if len(folders) > 1 else ""
    for row, places in rows.items():
        if (places[0] / "images.png").is_file():
            part.pictures.append(_file(places[0] / "images.png", f"images of {row}{several}"))
    losses = {row: [*filter(None, (_losses(_log(place)) for place in places))] for row, places in rows.items()}
    losses = {row: lines for row, lines in losses.items() if lines}
    if losses:
        part.pictures.append(_drawn(save_losses, losses, "loss", "by episode, a line a seed; long runs in block means"))


def _add_results(part: Part, recipe: Recipe, done: Mapping[str, Sequence[Values]], smoke: bool) -> None:
    """Tables, figure and headline of rows that are finished, by row one result a seed."""
    main = done[recipe.name]
    results = [{row: found[number] for row, found in done.items()} for number in range(len(main))]
    part.summary, part.cost = summaries.of_run("accuracy", results), _cost(done)
    part.pictures.append(_drawn(save_accuracies, _accuracies(done), "accuracy", "a dot a network, a bar their mean"))
    hashes = [result["artefact_sha256"][:12] for result in main]
    part.about["artefact"] = f"synthetic.safetensors, SHA-256 {', '.join(hashes)} (first 12 digits)"
    commits = dict.fromkeys(result["commit"] for held in done.values() for result in held if result["commit"])
    if len(commits) > 1:
        part.about["results of commits"] = ", ".join(commits)
    if not smoke:
        part.headline = _headline(recipe, main)


def _result(folder: Path) -> Values | None:
    file = folder / "result.json"
    return dict(read_json(file)) if file.is_file() else None


def _how_far(row: str, folder: Path, networks: int) -> str:
    """Where a row stands that is not finished."""
    scored, episodes = folder / "checkpoints" / "evaluate.json", len(_log(folder))
    if scored.is_file():
        counts = [f"{len(accuracies)} of {networks} {name}" for name, accuracies in read_json(scored).items()]
        return f"{row}, {folder}: networks scored: {', '.join(counts)}"
    if (folder / "synthetic.safetensors").is_file():
        return f"{row}, {folder}: its set is saved, not scored yet"
    done = f"{counted(episodes, 'episode')} logged" if episodes else "nothing done yet"
    return f"{row}, {folder}: {done}"


def _headline(recipe: Recipe, results: Sequence[Values]) -> Headline:
    stored, scores = results[0]["stored"], [result["evaluation"][0] for result in results]
    means, networks = [score["mean"] for score in scores], sum(len(score["accuracies"]) for score in scores)
    spread = stdev(means) if len(means) > 1 else scores[0]["std"]
    return Headline(
        f"{recipe['data']['name'] or 'folder'}, {recipe.evaluate.split}",
        scores[0]["network"],
        f"{stored['images_per_class']:,}",
        f"{stored['tensor_bytes']:,}",
        percent(mean(means), spread),
        (f"{counted(len(means), 'seed')}, " if len(means) > 1 else "") + counted(networks, "network"),
    )


def _cost(done: Mapping[str, Sequence[Values]]) -> Table:
    """Time of every row, the mean over seeds, and the most memory."""
    rows = []
    for row, results in done.items():
        on_experts = mean(result.get("experts_seconds", 0.0) for result in results)
        stored = results[0]["stored"]
        rows.append(
            [
                row,
                duration(mean(result["seconds"] for result in results)),
                duration(on_experts) if on_experts else "",
                size(max(result["peak_bytes"] for result in results)),
                "" if row == FULL else f"{stored['file_bytes'] + stored['side_bytes']:,}",
            ]
        )
    columns = ["", "condensed and scored", "experts made", "peak memory so far", "bytes of files"]
    return Table("what it took: time a seed, memory of the whole process until then", columns, rows)


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
    rows = [[part.title, part.folder, *(part.headline or [""] * 6)] for part in parts]
    columns = ["", "folder", "data", "network", "images/class", "bytes", "accuracy %", "± over"]
    return Table("side by side; other data, images or networks are no comparison", columns, rows)


def _file(path: Path, title: str) -> Picture:
    return Picture(title, base64.b64encode(path.read_bytes()).decode(), drawn=not title.startswith("images"))


def _drawn(draw: Any, what: Any, title: str, about: str) -> Picture:
    """A figure that is drawn for the page."""
    buffer = io.BytesIO()
    draw(what, buffer)
    return Picture(title, base64.b64encode(buffer.getvalue()).decode(), about, drawn=True)
