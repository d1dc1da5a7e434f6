"""Recipes by name: the shipped ones, which are written as a sheet a data set, and YAML files of the user's."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial, reduce
from importlib.resources import files
from pathlib import Path

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


Written = tuple[Values, dict[str, str]]  # sections as written, and about


@cache
def _shipped() -> dict[str, Callable[[], Written]]:
    """All recipes of the package by name, each put together when it is asked for: of hundreds a run needs one."""
    found = sorted((files("condensate") / "recipes").iterdir(), key=lambda file: file.name)
    sheets = {file.name: yaml.load(file.read_text(encoding="utf-8"), LOADER) for file in found if ".yaml" in file.name}
    methods = sheets.pop("methods.yaml")
    recipes: dict[str, Callable[[], Written]] = {}
    for sheet in sheets.values():
        for name, base, layers in _cells(sheet, methods) if "pairs" in sheet else ():
            recipes[name] = partial(_cell, layers, base)
            if next((layer["lo"] for layer in reversed(layers) if "lo" in layer), {}) is not None:
                recipes[name.replace(f"-{base}", f"-lo{base}")] = partial(_cell, layers, base, methods["lo"])
    for sheet in sheets.values():
        recipes |= _derived(sheet, recipes)
    return recipes


def _derived(sheet: Values, recipes: Mapping[str, Callable[[], Written]]) -> dict[str, Callable[[], Written]]:
    """The recipes of a sheet that are others with something more said: one for each method and number of steps."""
    found: dict[str, Callable[[], Written]] = {}
    for name, family in sheet.get("derived", {}).items():
        said = {key: content for key, content in family.items() if key not in ("of", "steps", "methods", "about")}
        for method, own in family["methods"].items():
            base = recipes[own.get("of", family["of"]).format(method=method)]
            own = {key: content for key, content in own.items() if key != "of"}
            for steps in family["steps"]:
                layers: list[Values] = [said, own, {"continual": {"steps": steps}}]
                found[name.format(method=method, steps=steps)] = partial(
                    _further, base, layers, family["about"], method
                )
    return found


def _further(base: Callable[[], Written], layers: list[Values], about: Values, method: str) -> Written:
    """Another recipe with something more said."""
    values = reduce(merge, layers, base()[0])
    return values, _spoken(about, method, values)


def _cells(sheet: Values, methods: Values) -> Iterator[tuple[str, str, list[Values]]]:
    """The base recipes of a data set's sheet: name, method, and the layers of sections, ``about`` and ``lo``.

    A name with {data} in it stands for every data set of the sheet's ``sets``, one with {ipc} for every budget of its
    own ``ipc``. What is said of fewer recipes goes over what is said of more; ``lo`` holds what only the twin takes,
    null where there is none.
    """
    for name, pair in sheet["pairs"].items():
        shared = {key: content for key, content in pair.items() if key not in ("ipc", "method")}
        method = {key: content for key, content in methods[pair["method"]].items() if key != "ipc"}
        for name_of_data, own in sheet.get("sets", {"": {}}).items():
            for ipc, narrow in pair.get("ipc", {None: {}}).items():
                budget = {"budget": {"ipc": ipc}} | methods[pair["method"]].get("ipc", {}).get(ipc, {})
                layers = [sheet["common"], own, method, budget, shared, narrow]
                yield name.format(data=name_of_data, ipc=ipc), pair["method"], layers


def _cell(layers: list[Values], method: str, low: Values | None = None) -> Written:
    """A base recipe, or its twin where it is said what all twins are."""
    cell = reduce(merge, layers, Values())
    about, own = cell.pop("about"), cell.pop("lo", {})
    if low is None:
        return cell, _spoken(about, method, cell)
    return merge(merge(cell, low), own), _spoken(about, f"lo{method}", cell)


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
        return name_or_path, *_shipped()[name_or_path]()
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        raise unknown("recipe", name_or_path, _shipped(), "(or give the path of a YAML file; list: condensate recipes)")
    if not path.is_file():
        raise UserError(f"no recipe file {path}; shipped recipes are listed by: condensate recipes")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not YAML: {' '.join(str(error).split())}; correct it there; for one to start from: "
            "condensate show RECIPE"
        ) from error
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
