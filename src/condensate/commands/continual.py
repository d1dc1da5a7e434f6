"""The command continual: condensed sets as the memory of a stream of classes."""

import argparse
from pathlib import Path

from condensate.commands.base import Command, chosen_device, machine_options, positive, read_recipe
from condensate.condensing import Session
from condensate.console import Display, percent, show_table
from condensate.errors import UserError
from condensate.recipe import Values, merge
from condensate.runs import check_free, new_folder
from condensate.studies import continual

# Beside what a recipe names: real images in the same bytes, the upper and the lower line.
SHOWN = ("random-uint8", "full", "finetune")


def study_options(parser: argparse.ArgumentParser) -> None:
    """What the commands that carry out a study take."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a shipped name or the path of a YAML file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to; absent: runs/RECIPE/NNN, the next free")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the study in this folder")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes, each with --threads threads")
    parser.add_argument("--smoke", action="store_true", help="does it run at all? toy size, random images, no result")
    machine_options(parser)


def _continual(options: argparse.Namespace, keys: Values) -> None:
    device, display = chosen_device(options.device), Display()
    if options.resume:
        if options.recipe or options.out or keys or options.smoke:
            raise UserError("--resume takes everything from the folder: give no RECIPE, --out, --smoke or key")
        study = continual.reopen(options.resume, device, display, options.threads)
    else:
        if not options.recipe:
            raise UserError("continual needs a RECIPE, as in: condensate continual digits-continual-lodm-5steps")
        recipe, changes = read_recipe(options.recipe, merge({"continual": {}}, keys))
        if "compare" not in keys:
            missing = [row for row in SHOWN if row not in recipe["compare"]]
            recipe = recipe.with_values(compare=[*recipe["compare"], *missing])
        if options.out:
            check_free(options.out)
        study = continual.prepare(recipe, Session(device, display, changes, options.smoke))
        study = study.at(options.out or new_folder(recipe.name))
    display.say(f"run folder: {study.folder}")
    _show(study.run(options.jobs))
    print(f"figure and table: {study.folder / 'curves.png'}, {study.folder / 'curves.csv'}")


def _show(result: Values) -> None:
    """Accuracy by classes seen, and what the whole stream gave."""
    rows, first = result["rows"], next(iter(result["rows"].values()))
    seen = [str(point["classes_seen"]) for point in first["curve"]]
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


CONTINUAL = Command("Condense a stream of classes step by step into a memory, and score it.", study_options, _continual)
