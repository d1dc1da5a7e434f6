"""Recipes by name: the shipped ones, which are written as a sheet a data set, and YAML files of the user's."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache, reduce
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from condensate.errors import UserError, unknown
from condensate.recipe import Recipe, Values, merge
from condensate.schema import complete

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML has it: 0.2 seconds less at every start
# Not for files of the user's: names of rows, and of folders beside those of rows.
RESERVED = (
    *("full", "random", "random-uint8", "herding", "k-centre", "finetune", "reservoir", "reservoir-uint8"),
    *("experts", "checkpoints", "compare"),
)


@cache
def _shipped() -> dict[str, tuple[Values, dict[str, str]]]:
    """All recipes of the package: name -> (sections, about)."""
    found = sorted((files("condensate") / "recipes").iterdir(), key=lambda file: file.name)
    sheets = {file.name: yaml.load(file.read_text(encoding="utf-8"), LOADER) for file in found if ".yaml" in file.name}
    methods = sheets.pop("methods.yaml")
    recipes: dict[str, tuple[Values, dict[str, str]]] = {}
    for sheet in sheets.values():
        for name, cell in _cells(sheet, methods) if "pairs" in sheet else ():
            base, about, low = cell.pop("method"), cell.pop("about"), cell.pop("lo", {})
            recipes[name] = cell, _spoken(about, base, cell)
            if low is not None:
                twin = name.replace(f"-{base}", f"-lo{base}")
                recipes[twin] = merge(merge(cell, methods["lo"]), low), _spoken(about, f"lo{base}", cell)
    for sheet in sheets.values():
        recipes |= _derived(sheet, recipes)
    return recipes


def _derived(sheet: Values, recipes: Mapping[str, tuple[Values, Any]]) -> dict[str, tuple[Values, dict[str, str]]]:
    """The recipes of a sheet that are others with something more said: one for each method and number of steps."""
    found: dict[str, tuple[Values, dict[str, str]]] = {}
    for name, family in sheet.get("derived", {}).items():
        said = {key: content for key, content in family.items() if key not in ("of", "steps", "methods", "about")}
        for method, own in family["methods"].items():
            base, _ = recipes[own.get("of", family["of"]).format(method=method)]
            own = {key: content for key, content in own.items() if key != "of"}
            for steps in family["steps"]:
                number = {"continual": {"steps": steps}}
                layers: list[Values] = [base, said, own, number]
                values = reduce(merge, layers, Values())
                found[name.format(method=method, steps=steps)] = values, _spoken(family["about"], method, values)
    return found


def _cells(sheet: Values, methods: Values) -> Iterator[tuple[str, Values]]:
    """The base recipes of a data set's sheet by name, with ``method``, ``about`` and ``lo`` among their sections.

    A name with {data} in it stands for every data set of the sheet's ``sets``, one with {ipc} for every budget of its
    own ``ipc``. What is said of fewer recipes goes over what is said of more; ``lo`` holds what only the twin takes,
    null where there is none.
    """
    for name, pair in sheet["pairs"].items():
        shared = {key: content for key, content in pair.items() if key != "ipc"}
        method = {key: content for key, content in methods[pair["method"]].items() if key != "ipc"}
        for name_of_data, own in sheet.get("sets", {"": {}}).items():
            for ipc, narrow in pair.get("ipc", {None: {}}).items():
                budget = {"budget": {"ipc": ipc}} | methods[pair["method"]].get("ipc", {}).get(ipc, {})
                layers = [sheet["common"], own, method, budget, shared, narrow]
                yield name.format(data=name_of_data, ipc=ipc), reduce(merge, layers, {})


def _spoken(about: Values, method: str, sections: Values) -> dict[str, str]:
    """What a sheet says of one method's recipe; a text may differ by method, and a number not given is not held."""
    texts = {k: text.get(method, "not held") if isinstance(text, dict) else text for k, text in about.items()}
    return {key: str(text).format(ipc=sections["budget"]["ipc"]) for key, text in texts.items()}


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return list(_shipped())


def find(name_or_path: str) -> tuple[str, Values, dict[str, str]]:
    """Name, sections as written and about of a shipped recipe or a YAML file.

    Raises:
        UserError: There is none, or the file is not YAML sections.
    """
    if name_or_path in _shipped():
        values, about = _shipped()[name_or_path]
        return name_or_path, deepcopy(values), dict(about)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        raise unknown("recipe", name_or_path, _shipped(), "(or give the path of a YAML file; list: condensate recipes)")
    if not path.is_file():
        raise UserError(f"no recipe file {path}; shipped recipes are listed by: condensate recipes")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(
            f"{path} must hold sections such as data, objective and budget, got {got}; "
            "for one to start from: condensate show RECIPE"
        )
    name = path.stem  # a file is never filed as the shipped recipe or the baseline whose name it bears
    return (f"{name}-file" if name in _shipped() or name in RESERVED else name), values, {}


def resolve(name_or_path: str, changes: Values | None = None) -> Recipe:
    """A complete recipe from a shipped name or a YAML file.

    Args:
        name_or_path: What to start from.
        changes: Keys to change, nested by section.

    Raises:
        UserError: An unknown name or key, or a value of the wrong type.
    """
    name, values, about = find(name_or_path)
    return complete(name, merge(values, changes or {}), about)
