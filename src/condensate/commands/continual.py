"""The command continual: condensed sets as the memory of a stream of classes."""

import argparse

from condensate.commands.base import Command, read_recipe
from condensate.commands.studies import BY_JOBS, carry_out, study_options
from condensate.console import percent, show_table
from condensate.recipe import Recipe, Values, merge
from condensate.studies import continual

# Beside what a recipe names: real images in the same bytes, the upper and the lower line.
SHOWN = ("random-uint8", "full", "finetune")


def _continual(options: argparse.Namespace, keys: Values) -> None:
    usage = "continual needs a RECIPE, as in: condensate continual digits-continual-lodm-5steps"
    folder, result = carry_out(
        options, keys, read=_read, prepare=continual.prepare, reopen=continual.reopen, command="continual", usage=usage
    )
    _show(result)
    print(f"figure and table: {folder / 'curves.png'}, {folder / 'curves.csv'}")


def _read(name: str, keys: Values) -> tuple[Recipe, Values]:
    """A recipe along a stream, with the rows that are always shown unless the user chose some."""
    recipe, changes = read_recipe(name, merge({"continual": {}}, keys))
    if "compare" not in keys:
        missing = [row for row in SHOWN if row not in recipe["compare"]]
        recipe = recipe.with_values(compare=[*recipe["compare"], *missing])
    return recipe, changes


def _show(result: Values) -> None:
    """Accuracy by classes seen, and what the whole stream gave."""
    rows, first = result["rows"], next(iter(result["rows"].values()))
    seen = [f"{point['classes_seen']}" for point in first["curve"]]
    if len(set(seen)) < len(seen):  # data sets that share their labels
        seen = [f"{classes}, step {number + 1}" for number, classes in enumerate(seen)]
    orders = len(result["orders"])
    networks = first["curve"][0]["networks"] // orders
    show_table(
        f"accuracy % by classes seen, {orders} class orders of {networks} networks each",
        ["", *seen],
        [[row, *(percent(p["mean"], p["std"]) for p in found["curve"])] for row, found in rows.items()],
    )
    told = []
    for row, found in rows.items():
        last, against = found["curve"][-1], result["differences"].get(row)
        over = "" if against is None else f"{100 * against['mean']:+.1f}"
        if against is not None and against["low"] is not None:
            over += f" ({100 * against['low']:+.1f} to {100 * against['high']:+.1f})"
        lost = found["forgetting"]
        told.append(
            [
                row,
                f"{last['images']:,}" if last["images"] else "",
                f"{last['bytes']:,}" if last["bytes"] else "",
                percent(found["average_incremental"]["mean"], found["average_incremental"]["std"]),
                "" if lost is None else percent(lost["mean"], lost["std"]),
                over,
            ]
        )
    show_table(
        f"{result['protocol']}, {result['budget']} budget",
        ["", "images at the end", "bytes", "mean over steps %", "forgetting %", f"{result['recipe']} is better by"],
        told,
    )
    for row, found in rows.items():
        for cost in found["cost_of_shrinking"]:
            fewer = f"{cost['images'][0]} to {cost['images'][1]} images"
            print(
                f"{row}: step {cost['step']} shrank older classes from {fewer} ({cost['rule']}), which cost "
                f"{percent(cost['mean'], cost['std'])} points on them"
            )
    if result["smoke"]:
        print("a smoke run: it ran; the numbers mean nothing")
    print("± is the sample standard deviation over class orders, ( to ) a 95 % interval of the paired difference")


CONTINUAL = Command(
    "Condense a stream of classes step by step into a memory, and score it.", study_options, _continual, alone=BY_JOBS
)
