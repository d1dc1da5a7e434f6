"""What the commands that carry out a study share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from condensate.commands.base import chosen_device, machine_options, positive, resumable
from condensate.console import Display
from condensate.errors import UserError
from condensate.recipe import Recipe, Values
from condensate.runs import check_free, new_folder
from condensate.sessions import Session

BY_JOBS = "a study starts its processes itself: leave torchrun out and say how many with --jobs N"


class Study(Protocol):
    """A study that can be carried out in a folder."""

    @property
    def folder(self) -> Path:
        """Where."""

    def at(self, folder: Path) -> "Study":
        """The same in a folder, which is written as far as it needs to be resumed."""

    def run(self, jobs: int = 1) -> Values:
        """Carry it out."""


def study_options(parser: argparse.ArgumentParser) -> None:
    """What the commands that carry out a study take."""
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a shipped name or the path of a YAML file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to; absent: runs/RECIPE/NNN, the next free")
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the study in this folder")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes, each with --threads threads")
    parser.add_argument("--smoke", action="store_true", help="does it run at all? toy size, random images, no result")
    machine_options(parser)


def carry_out(
    options: argparse.Namespace,
    keys: Values,
    *,
    read: Callable[[str, Values], tuple[Recipe, Values]],
    prepare: Callable[[Recipe, Session], Study],
    reopen: Callable[[Path, torch.device, Display, int | None], Study],
    command: str,
    usage: str,
) -> tuple[Path, Values]:
    """The folder of a study and its result: of a new one, or of one that was stopped.

    Args:
        options: As ``study_options`` has them.
        keys: Of the recipe, as changed by the user.
        read: From what was named and the keys to the recipe and what was changed of it.
        prepare: Makes the study of a recipe.
        reopen: Finds the study in a folder.
        command: Its name.
        usage: What to say where nothing was named.
    """
    device, display = chosen_device(options.device), Display()
    if options.resume:
        if options.recipe or options.out or keys or options.smoke:
            raise UserError("--resume takes everything from the folder: give no RECIPE, --out, --smoke or key")
        study = reopen(options.resume, device, display, options.threads)
    else:
        if not options.recipe:
            raise UserError(usage)
        recipe, changes = read(options.recipe, keys)
        if options.out:
            check_free(options.out)
        study = prepare(recipe, Session(device, display, changes, options.smoke, command))
        study = study.at(options.out or new_folder(recipe.name))
    display.say(f"run folder: {study.folder}")
    with resumable(command, study.folder):
        return study.folder, study.run(options.jobs)
