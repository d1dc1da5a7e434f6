"""The command line."""

import argparse
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from typing import Any

import torch
import yaml

from condensate import __version__
from condensate.commands import COMMANDS, Command
from condensate.commands.base import note
from condensate.ending import Terminated, raised_when_terminated
from condensate.errors import UserError, unknown
from condensate.ranks import ALONE, TIMEOUT, Ranks
from condensate.recipe import Values
from condensate.schema import describe_keys, keys_of

HELP = {"-h", "--help"}
LESS_MEMORY = (
    "less is needed with a smaller budget, network or --data.size, a smaller --compute.chunk, or --data.hold disk; "
    "condensate plan says how much; a run that was begun is gone on with by --resume"
)


class _Parser(argparse.ArgumentParser):
    """Mistakes become errors of ours, on one line."""

    def error(self, message: str) -> Any:
        """Raise instead of exiting."""
        raise UserError(f"{message}; see: {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status is 0, or 2 after a mistake of the user's, said in one line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if given[0] == "--version":
        print(__version__)
        return 0
    ranks = ALONE
    try:
        ranks = Ranks.of_torchrun()
        # several processes, which wait for one another, are ended by SIGTERM at once
        ending = raised_when_terminated() if ranks.world == 1 else nullcontext()
        with warnings.catch_warnings(), ending:
            warnings.showwarning = note if ranks.first else _nothing
            _execute(given[0], given[1:], ranks)
    except UserError as error:
        _tell(ranks, " ".join(str(error).split()))
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if isinstance(error, ConnectionAbortedError):
            _tell(ranks, str(error))
            return 1
        _tell(ranks, f"cannot use {error.filename or 'a file'}: {error.strerror or error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        asked = re.search(r"ried to allocate (\S+ \S+[^\s.])", str(error))
        _tell(ranks, f"there is not enough memory{f' for {asked[1]} more' if asked else ''}; {LESS_MEMORY}")
        return 2
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        how = "; ".join(["terminated" if ended else "interrupted", *getattr(error, "__notes__", [])])
        print(f"condensate: {how}", file=sys.stderr)
        return 143 if ended else 130
    return 0


def _tell(ranks: Ranks, why: str) -> None:
    """Say why the program ends. Where all processes end alike, torchrun is not to end those that are not the first."""
    if ranks.tell(f"condensate: {why}") and ranks.world > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_of_memory(error: Exception) -> bool:
    """Whether memory was asked for in vain, of Python, PyTorch or the GPU."""
    said = ("can't allocate memory", "not enough memory", "Storage size calculation overflow")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in str(error) for part in said)


def _nothing(*_: Any, **__: Any) -> None:
    """Stands in for ``warnings.showwarning`` where another process says it."""


def _execute(name: str, given: list[str], ranks: Ranks) -> None:
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    command = COMMANDS[name]
    parser = _Parser(prog=f"condensate {name}", description=command.help, allow_abbrev=False)
    command.options(parser)
    own, keys = _separate(given) if command.keys else (given, {})
    if HELP & set(own):
        print(parser.format_help())
        if command.keys:
            named = _named(parser, own)
            recipe = command.recipe(named, keys)
            of = f"{named or recipe.name}{' and those given' if keys else ''}"
            print(f"recipe keys, with the values of {of}:\n\n{describe_keys(recipe)}")
        return
    options, left = parser.parse_known_intermixed_args(own)
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}{_hint(command, parser, own, left, keys)}")
    if ranks.world > 1 and command.alone:
        raise UserError(f"condensate {name} is not for several processes: {command.alone}")
    if getattr(options, "threads", None):
        torch.set_num_threads(options.threads)
    with ranks.joined(getattr(options, "timeout", TIMEOUT)) as options.ranks:
        command.execute(options, keys)


def _named(parser: _Parser, own: list[str]) -> str | None:
    """The recipe, file or folder among a command's own arguments, if there is one."""
    try:
        options, _ = parser.parse_known_intermixed_args([token for token in own if token not in HELP])
    except UserError:  # none, where one is needed
        return None
    named = getattr(options, "recipe", None) or getattr(options, "path", None)
    return None if named is None else str(named)


def _hint(command: Command, parser: _Parser, own: list[str], left: list[str], keys: Values) -> str:
    """Which recipe keys or options an argument that is neither may have meant."""
    word = next((token.partition("=")[0][2:].replace("-", "_") for token in left if token.startswith("--")), "")
    if not word or not command.keys:
        return ""
    try:
        recipe = command.recipe(_named(parser, own), keys)
    except UserError:
        recipe = command.recipe(None, {})
    known: dict[str, list[str]] = {}
    for key in [option[2:] for option in parser._option_string_actions if option.startswith("--")] + keys_of(recipe):
        section, _, last = key.rpartition(".")
        for short in {last, section} if last == "name" else {last}:
            known.setdefault(short, []).append(f"--{key}")
    near = get_close_matches(word, known, n=1, cutoff=0.7)
    meant = f"did you mean {' or '.join(known[near[0]])}? " if near else ""
    return f"; {meant}recipe keys are --section.key"


def _separate(given: list[str]) -> tuple[list[str], Values]:
    """The command's own arguments, and the recipe keys ``--section.key value`` among them, nested."""
    own: list[str] = []
    keys: Values = {}
    tokens = iter(given)
    for token in tokens:
        name, equals, value = token.partition("=")
        if not name.startswith("--") or ("." not in name and name not in ("--seed", "--compare")):
            own.append(token)
            continue
        if not equals:
            value = next(tokens, "--")
            if value.startswith("--"):
                raise UserError(f"{name} needs a value, as in {name} VALUE")
        section, _, key = name[2:].partition(".")
        text = name in ("--data.path", "--data.name", "--experts.store", "--privacy.released") and value != "null"
        read = value if text else _value(value)
        if name == "--compare" and read is None:  # null: with nothing
            read = []
        held = keys.get(section)
        keys[section] = {**(held if isinstance(held, dict) else {}), key: read} if key else read
    return own, keys


def _value(text: str) -> Any:
    """A value as YAML has it; commas make a list."""
    try:
        read = yaml.safe_load(text)
        if isinstance(read, str) and "," in text:
            return [yaml.safe_load(part) for part in text.split(",") if part.strip()]
        return read
    except yaml.YAMLError as error:
        raise UserError(f"cannot read the value {text!r}: {' '.join(str(error).split())}") from error


def _overview() -> str:
    lines = [f"  {name:10} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: condensate COMMAND ...",
            "",
            "Dataset condensation: a large image data set goes in, a tiny synthetic one comes out.",
            "",
            *lines,
            "",
            "condensate COMMAND --help lists all a command takes; condensate --version says the version.",
        ]
    )
