"""What a recipe may say: every key known, every value of its type, every default filled in."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from condensate import data
from condensate.augment import Augment
from condensate.errors import UserError, unknown
from condensate.experts import ExpertOptions
from condensate.objectives import OBJECTIVES
from condensate.recipe import EXPERTS, NAMED, SECTIONS, STUDIES, Recipe, Values


def complete(name: str, values: Values, about: Mapping[str, str] | None = None) -> Recipe:
    """Check sections strictly and fill in every default."""
    check_sections(values)
    if values.get("compare", ()) is None:  # null: with nothing
        values = {**values, "compare": []}
    parser = _parser(values)
    check_keys(values, known_keys(parser))
    try:
        given = parser.parse_object(values, defaults=False).as_dict()
    except (ArgumentError, TypeError) as error:
        raise UserError(one_line(error)) from error
    parsed = {
        section: {**default, **given.get(section, {})} if isinstance(default, dict) else given.get(section, default)
        for section, default in _defaults(parser).items()
    }
    known = set(known_keys(parser))
    for action in (action for action in parser._actions if action.dest in known):
        section, _, key = action.dest.partition(".")
        value = parsed[section]
        if action.default is not None and (value.get(key, 0) if key and isinstance(value, dict) else value) is None:
            raise UserError(f"{action.dest} must have a value, got null; its default is {action.default!r}")
    order = ["data", "budget", "parameterization", "start", "network", "augment", "objective", EXPERTS]
    order += ["compute", "condense", "evaluate", *STUDIES, "compare", "seed"]
    order = [section for section in order if section in parsed]
    plain = {section: _plain(parsed[section]) for section in order}
    for section in NAMED:
        plain[section] = {"name": plain[section].pop("name"), **plain[section]}
    recipe = Recipe(name, plain, about or {})
    for section in ("budget", "experts", "condense", "evaluate", *STUDIES):
        getattr(recipe, section)
    if recipe.experts is None and (recipe.condense.lr_labels or recipe.condense.lr_step):
        raise UserError("condense.lr_labels and lr_step need an objective that learns them: mtt")
    if recipe.experts is None and recipe["compute"]["experts"] != "auto":
        raise UserError("compute.experts needs an objective that matches experts: mtt; leave it out, or at auto")
    Augment(**recipe["augment"])
    data.check_zca(**{key: recipe["data"][key] for key in ("mean", "std", "zca")})
    data.check_hold(recipe["data"]["hold"], recipe["data"]["workers"])
    pixel_std = recipe["start"].get("pixel_std")
    if pixel_std is not None and not 0 < pixel_std < math.inf:
        raise UserError(f"start.pixel_std must be above 0 and finite, got {pixel_std}")
    if recipe.condense.episodes and OBJECTIVES[recipe["objective"]["name"]].private:
        check_private(recipe)
    return recipe


def check_private(recipe: Recipe) -> None:
    """Refuse what would see real images beside an objective's noise."""
    said, data, start = f"objective {recipe['objective']['name']}", recipe["data"], recipe["start"]["name"]
    if start != "noise":
        raise UserError(f"{said} cannot start from real images, which no noise hides: --start.name noise, not {start}")
    if data["zca"]:
        raise UserError(f"{said} takes no whitening, for it is fitted to the images without noise: --data.zca false")
    if data["mean"] is None or data["std"] is None:
        raise UserError(
            f"{said} needs a stated normalisation, for one that is measured tells of the images without noise: "
            "--data.mean 0.5 --data.std 0.5, a value a channel"
        )


def describe_keys(recipe: Recipe) -> str:
    """Every key with its type, its value in the recipe and what it means, a line or two each."""
    lines, known = [], keys_of(recipe)
    for action in _parser(recipe.values)._actions:
        if action.dest in known:
            section, _, key = action.dest.partition(".")
            value = recipe[section][key] if key else recipe[section]
            meaning = " ".join(str(action.help or "").replace("%s", "").split())
            lines.append(f"  --{action.dest} {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
            lines.append(f"      {meaning}")
    return "\n".join(lines)


def keys_of(recipe: Recipe) -> list[str]:
    """All keys of a recipe, as in ``section.key``."""
    return known_keys(_parser(recipe.values))


def known_keys(parser: ArgumentParser) -> list[str]:
    """The keys of a parser, as in ``section.key``."""
    return [
        action.dest for action in parser._actions if action.dest not in (*SECTIONS, *NAMED, EXPERTS, *STUDIES, "help")
    ]


def check_sections(values: Values) -> None:
    """Refuse a word or a list where a section with keys belongs."""
    for section in (*SECTIONS, *NAMED, EXPERTS, *STUDIES):
        content = values.get(section, {})
        if not isinstance(content, Mapping):
            key = "name" if section in NAMED else "key"
            raise UserError(
                f"{section} must hold keys, as in {section}: {{{key}: value}}, got {content!r}; write it so, or leave "
                "it out for the defaults"
            )


def check_keys(values: Values, known: list[str]) -> None:
    """Refuse keys that are not known, naming the nearest."""
    sections = {key.split(".")[0] for key in known}
    for section, content in values.items():
        if section == EXPERTS and section not in sections:
            raise UserError(
                "the section experts needs an objective that matches experts: leave it out, or have one, objective: "
                "{name: mtt}"
            )
        if section not in sections:
            raise unknown("recipe section", str(section), sections)
        if section in (*SECTIONS, *NAMED, EXPERTS, *STUDIES):
            for key in content:
                if f"{section}.{key}" not in known:
                    raise unknown("recipe key", f"{section}.{key}", [k for k in known if "." in k])


def one_line(error: Exception) -> str:
    """A parser's message on one line, in plain words."""
    text = (
        " ".join(str(error).split())
        .replace("Parser key ", "")
        .replace("<class '", "")
        .replace("'>", "")
        .replace("Expected a typing.Literal", "Expected one of ")
        .replace("typing.Literal", "one of ")
    )
    text = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*), NoneType\] Errors: .* Given value: ",
        r"Expected \1 or null. Got value: ",
        text,
    )
    return text.replace('"', "", 2)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


Named = tuple[str, str, tuple[tuple[str, Callable[..., Any]], ...]]  # section, chosen name, registry


def _parser(values: Values) -> ArgumentParser:
    """The parser of a recipe's keys: those of the constructors that ``values`` names."""
    named: list[Named] = []
    for section, (registry, default) in NAMED.items():
        name = (values.get(section) or {}).get("name", default)
        if not isinstance(name, str) or name not in registry:
            raise unknown(section, str(name), registry)
        named.append((section, name, tuple(registry.items())))
    return _parser_of(tuple(named), tuple(section for section in STUDIES if section in values))


@functools.cache
def _defaults(parser: ArgumentParser) -> Values:
    """What its keys are where a recipe is silent: found once, for that takes as long as all that is said."""
    defaults: Values = parser.get_defaults(skip_validation=True).as_dict()
    return defaults


@functools.cache
def _parser_of(named: tuple[Named, ...], studies: tuple[str, ...]) -> ArgumentParser:
    """Made once for all recipes that name the same constructors: it takes longer than all they say to be parsed."""
    parser = ArgumentParser(exit_on_error=False)
    for section, function in SECTIONS.items():
        if inspect.isclass(function):
            parser.add_class_arguments(function, section, sub_configs=False)
        else:
            parser.add_function_arguments(function, section)
    for section, name, registry in named:
        chosen, known, usual = dict(registry)[name], ", ".join(dict(registry)), NAMED[section][1]
        parser.add_argument(f"--{section}.name", type=str, default=usual, help=f"One of: {known}.")
        positional: set[str | int] = {
            p.name for p in inspect.signature(chosen).parameters.values() if p.kind is not p.KEYWORD_ONLY
        }
        if inspect.isclass(chosen):
            parser.add_class_arguments(chosen, section, skip=positional)
        else:
            parser.add_function_arguments(chosen, section, skip=positional)
        if section == "objective" and OBJECTIVES[name].matches_experts:
            parser.add_class_arguments(ExpertOptions, EXPERTS, sub_configs=False)
    for section in studies:
        parser.add_class_arguments(STUDIES[section], section, sub_configs=False)
    parser.add_argument(
        "--compare",
        type=list[str],
        default=[],
        help="Rows to run for comparison: other recipes, random, random-uint8, herding, k-centre, full.",
    )
    parser.add_argument("--seed", type=int, default=0, help="Seeds every draw of the run.")
    return parser
