"""The commands recipes and show: what is shipped, and a recipe in full."""

import argparse

from condensate.commands.base import Command, read_recipe, recipe_option
from condensate.console import show_table
from condensate.errors import unknown
from condensate.recipe import Values
from condensate.sheets import find, shipped


def _recipes_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", nargs="?", default="", help="list the names with this in them, as in cifar10-lodm")


def _recipes(options: argparse.Namespace, keys: Values) -> None:
    if not options.part:
        _recipes_by_data()
        return
    rows = []
    for name in shipped():
        if options.part in name:
            _, values, about = find(name)
            rows.append([name, about.get("cost", f"{values['condense']['episodes']:,} episodes"), about["source"]])
    if not rows:
        raise unknown("recipe", options.part, shipped())
    show_table("", ["recipe", "cost", "source"], rows, prose=True)
    print("what a recipe takes on this machine: condensate plan RECIPE")


def _recipes_by_data() -> None:
    """How many recipes of which methods there are for each data set."""
    names: dict[str, list[str]] = {}
    for name in shipped():
        names.setdefault(find(name)[1]["data"]["name"], []).append(name)
    rows = []
    for data, those in names.items():
        methods = dict.fromkeys(name.removeprefix(f"{data}-").split("-")[0] for name in those)
        rows.append([data, ", ".join(methods), str(len(those))])
    show_table("", ["data", "methods", "recipes"], rows, prose=True)
    print("names, cost and source, for instance: condensate recipes cifar10-lodm; all of them: condensate recipes -")


def _show(options: argparse.Namespace, keys: Values) -> None:
    print(read_recipe(options.recipe, keys)[0].dump(), end="")


RECIPES = Command(
    "Count the shipped recipes, or list those of a name, with source and cost.", _recipes_options, _recipes, keys=False
)
SHOW = Command("Print a recipe in full, as YAML.", recipe_option, _show)
