"""Recipes: complete, strict descriptions of a run, and what they build."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from condensate import data
from condensate.augment import Augment
from condensate.classic import ClassicAugment
from condensate.compute import ComputeOptions
from condensate.errors import UserError, unknown
from condensate.experts import ExpertOptions
from condensate.networks import NETWORKS
from condensate.objectives import OBJECTIVES
from condensate.parameterizations import PARAMETERIZATIONS, Shape, pixel_bits
from condensate.starts import STARTS

Values = dict[str, Any]

RESERVED = ("full", "random", "random-uint8", "herding", "k-centre")


@dataclass(frozen=True)
class Budget:
    """How much may be stored; one of the two.

    Args:
        ipc: Images per class: the bits of that many float32 images of every class.
        bytes: Of the whole set.
    """

    ipc: int | None = None
    bytes: int | None = None

    def bits(self, classes: int, shape: Shape) -> int:
        """Bits of the whole set."""
        if (self.ipc is None) == (self.bytes is None):
            raise UserError(
                "a budget is either ipc or bytes: set one of --budget.ipc and --budget.bytes, the other null"
            )
        amount = self.ipc if self.bytes is None else self.bytes
        if amount is None or amount < 1:
            raise UserError(f"a budget must be at least 1, got {amount}")
        return amount * 8 if self.bytes is not None else classes * pixel_bits(amount, shape)


@dataclass(frozen=True)
class Condense:
    """How the stored numbers are optimised.

    Args:
        episodes: Freshly drawn networks.
        lr: Learning rate of the stored numbers.
        momentum: Of SGD.
        lr_labels: Learning rate of soft labels, which start as the classes; 0 keeps hard labels. Only with experts.
        lr_step: Learning rate of the step size; 0 keeps it. Only with experts.
        checkpoint: Episodes between checkpoints.
    """

    episodes: int = 20000
    lr: float = 1.0
    momentum: float = 0.5
    lr_labels: float = 0.0
    lr_step: float = 0.0
    checkpoint: int = 500

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if self.episodes < 0 or self.checkpoint < 1 or not 0 < self.lr < math.inf or not 0 <= self.momentum < 1:
            raise UserError(
                f"condense needs episodes >= 0, checkpoint >= 1, a finite lr > 0 and momentum in [0, 1), "
                f"got {self.episodes}, {self.checkpoint}, {self.lr} and {self.momentum}"
            )
        if not (0 <= self.lr_labels < math.inf and 0 <= self.lr_step < math.inf):
            raise UserError(
                f"condense.lr_labels and lr_step must be finite and at least 0, got {self.lr_labels}, {self.lr_step}"
            )


@dataclass(frozen=True)
class Evaluate:
    """How networks are trained on the result and scored.

    Args:
        networks: Names of networks, variants and lists of them (see the guide); "same" is the recipe's own.
        repeats: Networks of each kind.
        epochs: Passes over the synthetic set.
        epochs_full: Passes over the full training set, for the row "full".
        lr: Learning rate; null is the learned step size if there is one, else 0.01.
        augmentation: While training: dsa, one operator a batch as in section augment, or dc, one an image.
        ops: Its operators; null is the recipe's own of dsa, and crop, scale and rotate of dc.
        split: Which real images score: test, or validation, on which choices are made.
    """

    networks: list[str] = field(default_factory=lambda: ["same"])
    repeats: int = 20
    epochs: int = 1000
    epochs_full: int = 100
    lr: float | None = None
    augmentation: Literal["dsa", "dc"] = "dsa"
    ops: list[str] | None = None
    split: Literal["test", "validation"] = "test"

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if min(self.repeats, self.epochs, self.epochs_full) < 1 or not self.networks:
            raise UserError("evaluate needs at least one network, repeat and epoch")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"evaluate.lr must be above 0 and finite, got {self.lr}")
        if self.ops is not None:
            {"dsa": Augment, "dc": ClassicAugment}[self.augmentation](self.ops)


# A section of a recipe is the keywords of one of these...
SECTIONS: dict[str, Callable[..., Any]] = {
    "data": data.load,
    "budget": Budget,
    "augment": Augment,
    "compute": ComputeOptions,
    "condense": Condense,
    "evaluate": Evaluate,
}
# ...or a name and the keyword-only arguments of what it names.
NAMED: dict[str, tuple[Mapping[str, Callable[..., Any]], str]] = {
    "parameterization": (PARAMETERIZATIONS, "lowrank"),
    "start": (STARTS, "noise"),
    "network": (NETWORKS, "convnet"),
    "objective": (OBJECTIVES, "dm"),
}
# A recipe whose objective matches expert trajectories has this section, too.
EXPERTS = "experts"


@dataclass(frozen=True)
class Recipe:
    """A complete description of a run.

    Args:
        name: Of the recipe; runs are filed under it.
        values: All sections with all their keys, plain YAML.
        about: Source, published and own numbers and cost, in words.
    """

    name: str
    values: Values
    about: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, section: str) -> Any:
        """One section's keys (a copy)."""
        return deepcopy(self.values[section])

    def options(self, section: str) -> Values:
        """The keys of a named section without the name."""
        return {key: value for key, value in self[section].items() if key != "name"}

    @property
    def budget(self) -> Budget:
        """The budget."""
        return Budget(**self["budget"])

    @property
    def experts(self) -> ExpertOptions | None:
        """How experts are trained, where the objective matches any."""
        return ExpertOptions(**self[EXPERTS]) if EXPERTS in self.values else None

    @property
    def condense(self) -> Condense:
        """How the stored numbers are optimised."""
        return Condense(**self["condense"])

    @property
    def evaluate(self) -> Evaluate:
        """How the result is scored."""
        return Evaluate(**self["evaluate"])

    def with_values(self, **sections: Any) -> "Recipe":
        """A copy with some keys changed; a dict is merged into its section, and a changed name drops the old keys."""
        return replace(self, values=merge(self.values, sections))

    def dump(self) -> str:
        """The recipe as YAML, what it is in a comment at the top."""
        comment = "".join(f"# {key.capitalize()}: {value}\n" for key, value in self.about.items())
        return comment + yaml.safe_dump(self.values, sort_keys=False, default_flow_style=None, width=120)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """``base`` with ``changes`` over it, section by section.

    Where a section's name changes, its old keys go; where data.zca is switched on, so do mean and std, whose place it
    takes.
    """
    merged = deepcopy(dict(base))
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = key in NAMED and "name" in old and value.get("name", old["name"]) != old["name"]
            if key == "data" and value.get("zca") is True:
                old = {**old, "mean": None, "std": None}
            merged[key] = dict(deepcopy(value)) if renamed else merge(old, value)
            if renamed and key == "objective" and EXPERTS not in changes:
                merged.pop(EXPERTS, None)
        else:
            merged[key] = deepcopy(value)
    return merged


@cache
def _shipped() -> dict[str, tuple[Values, dict[str, str]]]:
    """All recipes of the package: name -> (sections, about)."""
    found = sorted((files("condensate") / "recipes").iterdir(), key=lambda file: file.name)
    sheets = {file.name: yaml.safe_load(file.read_text(encoding="utf-8")) for file in found if ".yaml" in file.name}
    methods = sheets.pop("methods.yaml")
    recipes: dict[str, tuple[Values, dict[str, str]]] = {}
    for sheet in sheets.values():
        for name, cell in _cells(sheet, methods):
            base, about, low = cell.pop("method"), cell.pop("about"), cell.pop("lo", {})
            recipes[name] = cell, _spoken(about, base, cell)
            if low is not None:
                twin = name.replace(f"-{base}", f"-lo{base}")
                recipes[twin] = merge(merge(cell, methods["lo"]), low), _spoken(about, f"lo{base}", cell)
    return recipes


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
        raise UserError(f"{path} must hold sections such as data, objective and budget, got {type(values).__name__}")
    name = path.stem  # a file is never filed as the shipped recipe or the baseline whose name it bears
    return (f"{name}-file" if name in _shipped() or name in RESERVED else name), values, {}


def add_arguments(parser: ArgumentParser, values: Values) -> None:
    """Teach a parser the keys of a recipe: those of the constructors that ``values`` names."""
    for section, function in SECTIONS.items():
        if inspect.isclass(function):
            parser.add_class_arguments(function, section, sub_configs=False)
        else:
            parser.add_function_arguments(function, section)
    for section, (registry, default) in NAMED.items():
        name = (values.get(section) or {}).get("name", default)
        if not isinstance(name, str) or name not in registry:
            raise unknown(section, str(name), registry)
        parser.add_argument(f"--{section}.name", type=str, default=default, help=f"One of: {', '.join(registry)}.")
        positional: set[str | int] = {
            p.name for p in inspect.signature(registry[name]).parameters.values() if p.kind is not p.KEYWORD_ONLY
        }
        if inspect.isclass(registry[name]):
            parser.add_class_arguments(registry[name], section, skip=positional)
        else:
            parser.add_function_arguments(registry[name], section, skip=positional)
    if OBJECTIVES[(values.get("objective") or {}).get("name", "dm")].matches_experts:
        parser.add_class_arguments(ExpertOptions, EXPERTS, sub_configs=False)
    parser.add_argument(
        "--compare",
        type=list[str],
        default=[],
        help="Rows to run for comparison: other recipes, random, random-uint8, herding, k-centre, full.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seeds every draw of the run.")


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


def complete(name: str, values: Values, about: Mapping[str, str] | None = None) -> Recipe:
    """Check sections strictly and fill in every default."""
    parser = ArgumentParser(exit_on_error=False)
    add_arguments(parser, values)
    check_keys(values, known_keys(parser))
    try:
        parsed = parser.parse_object(values, defaults=True).as_dict()
    except (ArgumentError, TypeError) as error:
        raise UserError(one_line(error)) from error
    known = set(known_keys(parser))
    for action in (action for action in parser._actions if action.dest in known):
        section, _, key = action.dest.partition(".")
        value = parsed[section]
        if action.default is not None and (value.get(key, 0) if key and isinstance(value, dict) else value) is None:
            raise UserError(f"{action.dest} must have a value, got null; its default is {action.default!r}")
    order = ["data", "budget", "parameterization", "start", "network", "augment", "objective", EXPERTS]
    order += ["compute", "condense", "evaluate", "compare", "seed"]
    order = [section for section in order if section in parsed]
    plain = {section: _plain(parsed[section]) for section in order}
    for section in NAMED:
        plain[section] = {"name": plain[section].pop("name"), **plain[section]}
    recipe = Recipe(name, plain, about or {})
    for section in ("budget", "experts", "condense", "evaluate"):
        getattr(recipe, section)
    if recipe.experts is None and (recipe.condense.lr_labels or recipe.condense.lr_step):
        raise UserError("condense.lr_labels and lr_step need an objective that learns them: mtt")
    Augment(**recipe["augment"])
    data.check_zca(**{key: recipe["data"][key] for key in ("mean", "std", "zca")})
    pixel_std = recipe["start"].get("pixel_std")
    if pixel_std is not None and not 0 < pixel_std < math.inf:
        raise UserError(f"start.pixel_std must be above 0 and finite, got {pixel_std}")
    return recipe


def describe_keys(recipe: Recipe) -> str:
    """Every key with its type, its value in the recipe and what it means, a line or two each."""
    parser = ArgumentParser(exit_on_error=False)
    add_arguments(parser, recipe.values)
    lines = []
    for action in parser._actions:
        if action.dest in known_keys(parser):
            section, _, key = action.dest.partition(".")
            value = recipe[section][key] if key else recipe[section]
            meaning = " ".join(str(action.help or "").replace("%s", "").split())
            lines.append(f"  --{action.dest} {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
            lines.append(f"      {meaning}")
    return "\n".join(lines)


def known_keys(parser: ArgumentParser) -> list[str]:
    """The keys of a parser, as in ``section.key``."""
    return [action.dest for action in parser._actions if action.dest not in (*SECTIONS, *NAMED, EXPERTS, "help")]


def check_keys(values: Values, known: list[str]) -> None:
    """Refuse keys that are not known, naming the nearest."""
    sections = {key.split(".")[0] for key in known}
    for section, content in values.items():
        if section == EXPERTS and section not in sections:
            raise UserError("the section experts needs an objective that matches experts: mtt")
        if section not in sections:
            raise unknown("recipe section", str(section), sections)
        if section in (*SECTIONS, *NAMED, EXPERTS):
            if not isinstance(content, Mapping):
                raise UserError(f"{section} must hold keys, as in {section}: {{key: value}}, got {content!r}")
            for key in content:
                if f"{section}.{key}" not in known:
                    raise unknown("recipe key", f"{section}.{key}", [k for k in known if "." in k])


def one_line(error: Exception) -> str:
    """A parser's message on one line, in plain words."""
    text = " ".join(str(error).split()).replace("Parser key ", "").replace("<class '", "").replace("'>", "")
    return text.replace('"', "", 2)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
