"""What the commands of the program share."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from condensate.console import Display, show_table
from condensate.errors import UserError
from condensate.ranks import ALONE, TIMEOUT, Ranks
from condensate.recipe import Recipe, Values, merge
from condensate.schema import complete
from condensate.sheets import find
from condensate.summaries import Summary

DEFAULT_RECIPE = "digits-lodm"


def read_recipe(name: str, keys: Values) -> tuple[Recipe, Values]:
    """A recipe with the user's changes; a single value stands for a list of one."""
    name, values, about = find(name)
    keys = as_lists(keys, complete(name, values, about).values)
    return complete(name, merge(values, keys), about), keys


def named_or_usual(name: str | None, keys: Values) -> Recipe:
    """A recipe with the user's changes, of an example where none was named."""
    return read_recipe(name or DEFAULT_RECIPE, keys)[0]


def as_lists(keys: Values, known: Values) -> Values:
    """The keys, single values for which a list is known wrapped in one."""
    if not keys:
        return {}
    wrapped = {}
    for section, content in keys.items():
        old = known.get(section)
        if isinstance(content, dict):
            lists = [
                key for key, value in (old if isinstance(old, dict) else {}).items() if isinstance(value, list)
            ] + ["ops", "mean", "std", "fprs", "then"]
            content = {k: [v] if k in lists and not isinstance(v, list | None) else v for k, v in content.items()}
        elif isinstance(old, list) and not isinstance(content, list):
            content = [content]
        wrapped[section] = content
    return wrapped


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Args:
        help: What it does, in one line.
        options: Adds its own arguments.
        execute: Carries it out; what the user changed of the recipe comes second. Among the arguments is ``ranks``.
        keys: Whether it takes recipe keys.
        recipe: The one whose keys its help lists: of what was named, with the user's changes, or of an example.
        alone: What to do without torchrun, for a command of one process; None if several can share it.
    """

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[argparse.Namespace, Values], None]
    keys: bool = True
    recipe: Callable[[str | None, Values], Recipe] = named_or_usual
    alone: str | None = "start it without torchrun"


def place(options: argparse.Namespace) -> tuple[torch.device, Display, Ranks]:
    """The device of this process, where it shows its progress, and which of several processes it is."""
    ranks: Ranks = options.ranks
    device = chosen_device(options.device, ranks)
    if len(set(ranks.gather(device.type))) > 1:
        raise UserError("some processes have a CUDA device and some have none; name one kind, as in --device cpu")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # its streams, too, are the current ones then
    return device, Display(quiet=not ranks.first), ranks


def chosen_device(name: str | None, ranks: Ranks = ALONE) -> torch.device:
    """The device of a name; absent: a CUDA device if there is one, else the CPU.

    Of several processes on a host each has the CUDA device of its number there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.world > 1 and name.startswith("cuda"):
        if name != "cuda":
            raise UserError(f"each process takes the device of its number on its host: say --device cuda, not {name}")
        name = f"cuda:{ranks.local}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; known: cpu, cuda, cuda:0 and so on") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}; known: cpu, cuda, cuda:0 and so on")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name}; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def machine_options(parser: argparse.ArgumentParser) -> None:
    """Where and how to compute."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; absent: cuda where there is one")
    parser.add_argument("--threads", type=positive, help="threads of PyTorch; absent: one a core")


def ranks_options(parser: argparse.ArgumentParser) -> None:
    """What matters under torchrun."""
    parser.add_argument(
        "--timeout",
        type=positive,
        default=int(TIMEOUT),
        metavar="SECONDS",
        help=f"under torchrun: how long a process waits for another in an episode before the run fails ({TIMEOUT:g})",
    )


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def recipe_option(parser: argparse.ArgumentParser) -> None:
    """The argument RECIPE."""
    parser.add_argument("recipe", metavar="RECIPE", help="a shipped name or the path of a YAML file")


@contextmanager
def resumable(command: str, folder: Path) -> Iterator[None]:
    """Have an interruption in the block say how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(f"go on with it: condensate {command} --resume {folder}")
        raise


def show_summary(summary: Summary) -> None:
    """What a result says, on standard output."""
    for table in summary.tables:
        show_table(table.title, table.columns, table.rows)
    for told in summary.notes:
        print(told)


def note(message: Warning | str, *rest: Any, **more: Any) -> None:
    """Something the user should know, on one line of standard error; stands in for ``warnings.showwarning``."""
    print(f"note: {message}", file=sys.stderr)
