"""The command run: condense, save, score."""

import argparse
from pathlib import Path

from condensate import runs
from condensate.commands.base import (
    Command,
    machine_options,
    place,
    positive,
    ranks_options,
    read_recipe,
    resumable,
    show_summary,
)
from condensate.errors import UserError
from condensate.recipe import STUDIES, Values
from condensate.sessions import Session
from condensate.summaries import of_run


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a shipped name or the path of a YAML file")
    parser.add_argument("--seeds", type=positive, metavar="N", help="run N seeds, from --seed on")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to; absent: runs/RECIPE/NNN, the next free")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument("--smoke", action="store_true", help="does it run at all? toy size, random images, no result")
    machine_options(parser)
    ranks_options(parser)


def _run(options: argparse.Namespace, keys: Values) -> None:
    device, display, ranks = place(options)
    if options.resume:
        if options.recipe or options.out or options.seeds or keys or options.smoke:
            raise UserError("--resume takes everything from the folder: give no RECIPE, --out, --seeds, --smoke or key")
        top = options.resume
        folders = runs.seed_folders(top) or [top]
        jobs = [runs.reopen(folder, device, display, options.threads, ranks) for folder in folders]
    else:
        if not options.recipe:
            raise UserError("run needs a RECIPE, as in: condensate run digits-lodm; list: condensate recipes")
        recipe, changes = read_recipe(options.recipe, keys)
        for study in STUDIES:
            if study in recipe.values:
                raise UserError(f"{recipe.name} has a section {study}: condensate {study} {options.recipe}")
        session = Session(device, display, changes, options.smoke, ranks=ranks)
        if options.out:
            ranks.once(lambda: runs.check_free(options.out))
        first = runs.prepare(recipe, session)  # whatever is wrong shows before anything is written
        top = options.out or ranks.once(lambda: runs.new_folder(recipe.name))
        seeds = range(recipe["seed"], recipe["seed"] + (options.seeds or 1))
        folders = [top / f"seed{seed}" for seed in seeds] if options.seeds else [top]
        jobs = [first.at(folder, seed) for folder, seed in zip(folders, seeds, strict=True)]
    display.say(f"run folder: {top}")
    with resumable("run", top):
        results = [job.run() for job in jobs]
    if ranks.first:
        show_summary(of_run(jobs[0].recipe.name, results))
        print(f"pictures: {jobs[0].folder / 'images.png'}")


RUN = Command("Condense, save, train networks on the result and score them.", _run_options, _run, alone=None)
