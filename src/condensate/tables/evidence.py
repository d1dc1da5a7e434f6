"""What finished cells say: their ``result.json`` checked against the cell, and the statistics over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from condensate.errors import UserError
from condensate.recipe import Recipe, Values
from condensate.records import fraction, read_json
from condensate.rows import FULL
from condensate.studies.continual import difference, spread
from condensate.tables.layout import Cell

RESULT, QUOTED = "result.json", "quoted.json"
SETTLED = ("compile", "precision", "tiles", "together", "mean", "std")


def finished(results: Path, cell: Cell) -> bool:
    """Whether a cell has its result."""
    file = results / cell.path / RESULT
    return file.is_file() and bool(_said(file))


def read(results: Path, cell: Cell) -> Values | None:
    """The result of a cell; None if there is none.

    Raises:
        UserError: The file is of something else: another recipe, seed, number of episodes or of networks.
    """
    file = results / cell.path / RESULT
    if not file.is_file():
        return None
    found, recipe = _said(file), cell.resolve()
    expected: Values = {"recipe": cell.recipe, "smoke": False}
    if "rows" not in found:  # a study has its class orders, one seed for all of them
        expected |= {"row": cell.row or cell.recipe, "seed": cell.seed}
        expected |= {"fraction": fraction(recipe)}
        networks = [(scored["epochs"], len(scored["accuracies"])) for scored in found.get("evaluation", [])]
        epochs = recipe.evaluate.epochs_full if cell.row == FULL else recipe.evaluate.epochs
        if not networks or set(networks) != {(epochs, recipe.evaluate.repeats)}:
            raise UserError(f"{file} has other networks or epochs than {cell.path}; move it away and run the cell")
    other = {key: found.get(key) for key, value in expected.items() if found.get(key) != value}
    if other:
        raise UserError(f"{file} is not of {cell.path}: {other} where {expected} belong; move it away")
    sections = _departing(found["values"], recipe) if "values" in found else []
    if sections:
        raise UserError(f"{file} was made with other {', '.join(sections)} than {cell.path} has now; move it away")
    return found


def _said(file: Path) -> Values:
    """What a result says; one that says nothing is damaged."""
    found = read_json(file)
    if not isinstance(found, dict) or "recipe" not in found:
        raise UserError(f"{file} is damaged; delete it to have this part done again")
    return found


def _departing(values: Values, recipe: Recipe) -> list[str]:
    """Sections in which a run differs from what its cell asks for; how it was computed is its own affair."""
    asked = recipe.anywhere().values
    sections = [section for section in asked if section not in ("compute", "evaluate", "parameterization")]
    found = [section for section in sections if values.get(section) != asked[section]]
    for section in ("evaluate", "parameterization"):  # what was settled by the machine and the data
        kept = {key: value for key, value in asked[section].items() if key not in SETTLED}
        found += [section] if any(values[section].get(key) != value for key, value in kept.items()) else []
    return found


@dataclass(frozen=True)
class Estimate:
    """An accuracy over seeds.

    Args:
        values: By seed, the mean over its networks.
        networks: Of a seed.
        std: Sample standard deviation over seeds, or over the networks of the one seed; None of one network.
    """

    values: dict[int, float]
    networks: int
    std: float | None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean(self.values.values())


def estimate(results: Path, cells: Sequence[Cell], network: str | None = None) -> Estimate | None:
    """The accuracy of a cell over its seeds, of those that are there; None if none is.

    Args:
        results: Folder of all results.
        cells: One cell, seed by seed.
        network: On which it was scored; the first if absent.
    """
    scored: dict[int, Values] = {}
    for cell in cells:
        result = read(results, cell)
        for score in (result or {}).get("evaluation", []):
            if score["network"] == network or network is None:
                scored.setdefault(cell.seed, score)
    if not scored:
        return None
    values = {seed: float(score["mean"]) for seed, score in scored.items()}
    first = next(iter(scored.values()))
    std = spread(list(values.values()))["std"] if len(values) > 1 else first["std"]
    return Estimate(values, len(first["accuracies"]), std)


def compare(ours: Estimate | None, others: Estimate | None) -> Values | None:
    """How much better one is than the other, paired over the seeds that both have; None if there are none.

    Returns:
        mean, values, and the 95 % interval over seeds, low and high, which are None for one seed.
    """
    if ours is None or others is None:
        return None
    seeds = [seed for seed in ours.values if seed in others.values]
    return difference([ours.values[s] for s in seeds], [others.values[s] for s in seeds]) if seeds else None


class Quoted:
    """Numbers of others, each with its source: ``results/quoted.json``.

    Args:
        results: Folder of all results; without the file there is nothing to quote.
    """

    def __init__(self, results: Path) -> None:
        file = results / QUOTED
        held = read_json(file)["numbers"] if file.is_file() else []
        self.numbers = {(entry["recipe"], entry.get("row")): entry for entry in held}
        self.used: dict[str, int] = {}

    def __call__(self, recipe: str | None, row: str | None = None) -> str:
        """In percent with its spread and the number of its source; empty where nothing is held."""
        entry = self.numbers.get((str(recipe), row))
        if entry is None:
            return ""
        number = self.used.setdefault(entry["source"], len(self.used) + 1)
        return f"{entry['mean']:.1f} ± {entry['std']:.1f} [{number}]"

    def notes(self) -> str:
        """The sources of all that was quoted."""
        said = [f"[{number}] {source}" for source, number in self.used.items()]
        return f"Quoted, not ours: {'; '.join(said)}." if said else ""
