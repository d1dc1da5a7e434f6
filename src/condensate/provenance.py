"""What a run was asked for and of which machine, told without the places of that machine."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from condensate.console import counted
from condensate.recipe import Recipe, Values
from condensate.sheets import find, shipped

PLACES, PLACE = ("path", "store", "released"), "DIR"  # keys that tell where something lies, and what is said in place


def elsewhere(values: Any, key: str = "") -> Any:
    """The same without the places of this machine."""
    if isinstance(values, Mapping):
        return {name: elsewhere(value, name) for name, value in values.items()}
    if isinstance(values, list):
        return [elsewhere(value, key) for value in values]
    return PLACE if key in PLACES and values is not None else values


def about(recipe: Recipe, begun: Values) -> dict[str, str]:
    """What was asked for, and of which machine."""
    machine, data, episodes = begun["machine"], recipe["data"], recipe.condense.episodes
    budget = {key: value for key, value in recipe["budget"].items() if value is not None}
    usual = recipe.name in shipped() and int(find(recipe.name)[1]["condense"]["episodes"])
    share = f" of the {usual:,} of the shipped recipe" if usual and usual != episodes else ""
    seen = ["whitened"] if data["zca"] else []
    seen += [f"{key} {data[key]}" for key in ("size", "channels", "validation") if data[key]]
    return {
        "data": "random images, a smoke run" if begun["smoke"] else ", ".join([_data(recipe), *seen]),
        "budget": ", ".join(f"{key} {value:,}" for key, value in budget.items()),
        "storage": _named(recipe["parameterization"]),
        **({"matched on": _named(recipe["objective"])} if episodes else {}),
        "start": _named(recipe["start"]),
        "network": _named(recipe["network"]),
        "episodes": f"{episodes:,}{share}",
        "machine": f"{begun['device']}, {machine['processor']}, {counted(machine['threads'], 'thread')}"
        + (f", {begun['processes']} processes" if begun.get("processes", 1) > 1 else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in begun["versions"].items())
        + (f", commit {begun['commit']}" if begun["commit"] else ""),
    }


def _data(recipe: Recipe) -> str:
    return f"{recipe['data']['name'] or 'a folder'}, scored on its {recipe.evaluate.split} images"


def _named(section: Mapping[str, Any]) -> str:
    """A section of a recipe on one line."""
    rest = [f"{key} {value}" for key, value in section.items() if key != "name" and value is not None]
    return ", ".join([str(section["name"]), *rest])


def words(recipe: Recipe, begun: Values, seeds: int) -> list[str]:
    """What does the same again; where data and experts lie is left to the reader."""
    command, processes = begun.get("command", "run"), begun.get("processes", 1)
    what = recipe.name if recipe.name in shipped() else f"{recipe.name}.yaml"
    if recipe.values.get("privacy", {}).get("released"):
        what = "RUN_FOLDER"
    program = ["condensate"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes), "-m", "condensate"]
    words = [shlex.join([*program, command, what])]
    for section, content in elsewhere(begun["overrides"]).items():
        for key, value in content.items() if isinstance(content, Mapping) else [("", content)]:
            if section != "seed" and (section, key) != ("privacy", "released"):
                words.append(shlex.join([f"--{section}.{key}" if key else f"--{section}", _word(value)]))
    words += [f"--seed {recipe['seed']}"] if recipe["seed"] else []
    words += [f"--seeds {seeds}"] if seeds else []
    words += ["--smoke"] if begun["smoke"] else []
    if begun["device"] == "cpu":
        words += ["--device cpu", f"--threads {begun['machine']['threads']}"]
    return words


def _word(value: Any) -> str:
    """A value as the command line reads it."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)
