"""The command continual: condensed sets as the memory of a stream of classes."""

import argparse

from condensate.commands.base import Command, read_recipe, show_summary
from condensate.commands.studies import BY_JOBS, carry_out, study_options
from condensate.objectives import OBJECTIVES
from condensate.recipe import Recipe, Values, merge
from condensate.studies import continual
from condensate.summaries import of_stream

EXAMPLE = "digits-continual-lodm-5steps"
# Beside what a recipe names: real images in the same bytes, the upper and the lower line.
SHOWN = ("random-uint8", "full", "finetune")


def _continual(options: argparse.Namespace, keys: Values) -> None:
    usage = f"continual needs a RECIPE, as in: condensate continual {EXAMPLE}"
    folder, result = carry_out(
        options, keys, read=_read, prepare=continual.prepare, reopen=continual.reopen, command="continual", usage=usage
    )
    show_summary(of_stream(result))
    print(f"figure and table: {folder / 'curves.png'}, {folder / 'curves.csv'}")


def _read(name: str, keys: Values) -> tuple[Recipe, Values]:
    """A recipe along a stream, with the rows that are always shown unless the user chose some.

    They are of real images, so not beside sets that are to keep these private.
    """
    recipe, changes = read_recipe(name, merge({"continual": {}}, keys))
    if "compare" not in keys and not OBJECTIVES[recipe["objective"]["name"]].private:
        missing = [row for row in SHOWN if row not in recipe["compare"]]
        recipe = recipe.with_values(compare=[*recipe["compare"], *missing])
    return recipe, changes


CONTINUAL = Command(
    "Condense a stream of classes step by step into a memory, and score it.",
    study_options,
    _continual,
    recipe=lambda name, keys: _read(name or EXAMPLE, keys)[0],
    alone=BY_JOBS,
)
