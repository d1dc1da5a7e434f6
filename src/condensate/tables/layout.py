"""Which cells the tables have: each is one run, continual study or baseline, of one seed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from condensate import assemble
from condensate.errors import unknown
from condensate.recipe import Recipe, Values, merge
from condensate.rows import FULL
from condensate.sheets import find, resolve, shipped

PAIRS, VARIANTS, NETWORKS, CONTINUAL = "pairs", "variants", "networks", "continual"
COST, STUDY = "cost", "study"  # without cells of their own


@dataclass(frozen=True)
class Profile:
    """How the cells of a table depart from their recipes.

    Args:
        name: Folders of results are filed under it.
        about: In words.
        fraction: Of the recipe's episodes.
        changes: Of the recipe's keys.
    """

    name: str
    about: str
    fraction: float = 1.0
    changes: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run of one seed.

    Args:
        profile: How it departs from its recipe.
        recipe: Shipped name.
        seed: Of the run; of the first class order of a study.
        row: The baseline that is run at the recipe's budget instead; None for the recipe itself.
        variant: What ``changes`` are called; empty for the recipe as the profile has it.
        changes: Of the recipe's keys, beyond those of the profile.
    """

    profile: Profile
    recipe: str
    seed: int = 0
    row: str | None = None
    variant: str = ""
    changes: Values = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder: the recipe and what is done to it."""
        return ".".join(part for part in (self.recipe, self.variant.replace(" ", "-"), self.row) if part)

    @property
    def path(self) -> str:
        """Of its folder, below that of all results."""
        return f"{self.profile.name}/{self.name}/seed{self.seed}"

    @property
    def overrides(self) -> Values:
        """All that it changes of its recipe but the seed."""
        changed = merge(self.profile.changes, self.changes)
        episodes = find(self.recipe)[1]["condense"]["episodes"]
        if self.profile.fraction != 1.0 and episodes:
            changed = merge(changed, {"condense": {"episodes": max(1, round(episodes * self.profile.fraction))}})
        return changed

    def resolve(self) -> Recipe:
        """Its recipe in full; the rows that the shipped one is compared with are cells of their own."""
        recipe = _resolved(self.recipe, json.dumps(self.overrides)).with_values(seed=self.seed)
        if self.row in assemble.BASELINES:
            return assemble.baseline(recipe, self.row)
        return recipe.with_values(condense={"episodes": 0}) if self.row == FULL else recipe


@cache
def _resolved(recipe: str, overrides: str) -> Recipe:
    """A recipe under changes, which takes a while to check and is the same for all seeds."""
    return resolve(recipe, merge(json.loads(overrides), {"compare": []}))


@dataclass(frozen=True)
class Table:
    """What stands in a table.

    Args:
        name: In ``tables.yaml`` and in the markers of pages.
        title: Above it.
        kind: pairs, variants, networks, continual, cost or study.
        profile: Of all its cells; None for cost and study, which have none of their own.
        seeds: Of every cell, from 0 on.
        columns: Recipes by label, with {method} in them, of pairs and continual.
        methods: What goes there; of pairs the base methods.
        originals: Whether pairs have the recipes of the base papers' own settings beside them.
        baselines: Real images at the same budget, and all of them, of pairs.
        rows: Recipes by label, of variants and networks.
        variants: Changes by label.
        changes: Of every cell.
        of: Tables whose cost is told.
        study: File of a study's result, below the folder of all results.
        brief: Whether a study's last step is all that is shown.
    """

    name: str
    title: str
    kind: str = PAIRS
    profile: Profile | None = None
    seeds: int = 1
    columns: dict[str, str] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    originals: bool = True
    baselines: tuple[str, ...] = ()
    rows: dict[str, str] = field(default_factory=dict)
    variants: dict[str, Values] = field(default_factory=dict)
    changes: Values = field(default_factory=dict)
    of: tuple[str, ...] = ()
    study: str = ""
    brief: bool = False

    def cell(self, recipe: str, *, row: str | None = None, variant: str = "") -> Cell:
        """The first seed of one of its cells; a variant that changes nothing is the recipe itself."""
        if self.profile is None:
            raise ValueError(f"table {self.name} has no cells of its own")
        changes = merge(self.changes, self.variants.get(variant, {}))
        own = find(recipe)[1]
        if merge(own, changes) == own:
            return Cell(self.profile, recipe, row=row)
        return Cell(self.profile, recipe, row=row, variant=variant or self.kind, changes=changes)

    def seeds_of(self, cell: Cell) -> list[Cell]:
        """The cell under every seed of the table."""
        return [replace(cell, seed=seed) for seed in range(self.seeds)]

    def recipes(self, method: str) -> list[str | None]:
        """A method's recipe in every column; None where there is none."""
        named = [pattern.format(method=method) for pattern in self.columns.values()]
        return [name if name in shipped() else None for name in named]

    def original(self, recipe: str | None) -> str | None:
        """The recipe that holds the base paper's own setting, where that differs and the table has it."""
        return f"{recipe}-original" if self.originals and f"{recipe}-original" in shipped() else None

    def cells(self) -> Iterator[Cell]:
        """The first seed of all its cells, twins together and the most valuable first."""
        if self.kind == PAIRS:
            for method in self.methods:
                twins = zip(self.recipes(method), self.recipes(f"lo{method}"), strict=True)
                yield from (self.cell(recipe) for pair in twins for recipe in pair if recipe)
                originals = (self.original(recipe) for recipe in self.recipes(method))
                yield from (self.cell(recipe) for recipe in originals if recipe)
            first = [recipe for recipe in self.recipes(self.methods[0]) if recipe]
            for row in self.baselines:  # all training images are the same at any budget
                yield from (self.cell(recipe, row=row) for recipe in (first[:1] if row == FULL else first))
        elif self.kind == CONTINUAL:
            yield from (self.cell(recipe) for method in self.methods for recipe in self.recipes(method) if recipe)
        else:
            for recipe in self.rows.values():
                yield from (self.cell(recipe, variant=variant) for variant in self.variants or ("",))


@cache
def _read() -> Values:
    text = files("condensate").joinpath("tables", "tables.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


@cache
def tables() -> dict[str, Table]:
    """All tables by name."""
    read = _read()
    profiles = {name: Profile(name, **content) for name, content in read["profiles"].items()}
    found = {}
    for name, content in read["tables"].items():
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        if "profile" in given:
            given["profile"] = profiles[given["profile"]]
        found[name] = Table(name, **given)
    return found


def chosen(names: Sequence[str]) -> list[Table]:
    """Tables by name, all of them if none is named.

    Raises:
        UserError: There is none of a name.
    """
    for name in names:
        if name not in tables():
            raise unknown("table", name, tables())
    return [tables()[name] for name in names or tables()]


def queue(device: str, names: Sequence[str] = ()) -> list[Cell]:
    """The cells to run on a kind of device, or those of the tables named, in order; each once.

    The first seed of every cell goes before any second one.
    """
    listed = [table for table in (chosen(names) if names else chosen(_read()["queue"][device])) if table.profile]
    most = max((table.seeds for table in listed), default=0)
    cells: dict[str, Cell] = {}
    for seed in range(most):
        for table in listed:
            if seed < table.seeds:
                cells |= {found.path: found for found in (replace(cell, seed=seed) for cell in table.cells())}
    return list(cells.values())
