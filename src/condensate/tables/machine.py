"""The machine that fills the tables: the next missing cells, within a time, whatever stopped it before."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from traceback import print_exc

import torch

from condensate import runs
from condensate.allocation import keep_freed_memory
from condensate.atomic import alone_in
from condensate.console import Display, duration
from condensate.ending import end_with_parent, raised_when_terminated
from condensate.errors import UserError
from condensate.recipe import Recipe
from condensate.rows import Row
from condensate.sessions import OutOfTime, Session
from condensate.studies import continual
from condensate.tables.evidence import finished
from condensate.tables.layout import Cell

DONE, STOPPED, REFUSED, FAILED = "done", "stopped", "refused", "failed"
SHORTEST = 5.0  # seconds; with less left nothing is begun
LAST_SECONDS = 5.0  # for a process that was asked to end


@dataclass
class Outcome:
    """What became of the cells of a call.

    Args:
        done: Cells finished.
        stopped: The cell that was at work when time was up, if any.
        refused: Cells that cannot be run here, and why.
        failed: Cells that ended in a fault of the program.
        left: Cells without a result.
    """

    done: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left: int = 0


@dataclass(frozen=True)
class Place:
    """Where and with what cells are run.

    Args:
        results: Folder of all results.
        device: As ``torch.device`` reads it.
        threads: Of PyTorch.
        data: Folder with the data sets; None to read them by name.
        reuse: Whether cells take real features from each other, see ``ComputeOptions``.
    """

    results: Path
    device: str
    threads: int
    data: Path | None = None
    reuse: bool = False


def fill(cells: Sequence[Cell], place: Place, seconds: float, display: Display) -> Outcome:
    """Run the cells that have no result, in order, until they are done or the time is up.

    Each is run in a process of its own and goes on from where it was stopped; a cell that another process is at is
    left to it. When time is up the cell at work writes a checkpoint and stops, and is stopped if it does not.
    """
    until, outcome = time.monotonic() + seconds, Outcome()
    missing = [cell for cell in cells if not finished(place.results, cell)]
    for number, cell in enumerate(missing):
        left = until - time.monotonic()
        if left < SHORTEST:
            break
        if finished(place.results, cell):  # by another process, since
            continue
        display.say(f"{cell.path} ({number + 1} of {len(missing)} missing), {duration(left)} left")
        state, why = _attempt(cell, place, until)
        if state == DONE:
            outcome.done.append(cell.path)
        elif state == STOPPED:
            outcome.stopped.append(cell.path)
            break
        elif state == REFUSED:
            outcome.refused[cell.path] = why
            display.say(f"{cell.path} is left out: {why}")
        else:
            outcome.failed.append(cell.path)
    outcome.left = sum(not finished(place.results, cell) for cell in cells)
    return outcome


def _attempt(cell: Cell, place: Place, until: float) -> tuple[str, str]:
    """Run a cell in a process of its own, which does not outlive the time; its state and why."""
    try:
        _reading(cell.resolve(), place.data)
    except UserError as error:
        return REFUSED, str(error)
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(cell, place, until - time.monotonic(), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            _end(process)  # a long piece of work, such as one network's training, is done again next time
            return (DONE, "") if finished(place.results, cell) else (STOPPED, "")
        try:
            state, why = ours.recv()
        except EOFError:
            return FAILED, f"its process ended with {process.exitcode}"
        return str(state), str(why)
    finally:
        _end(process)
        ours.close()


def _end(process: BaseProcess) -> None:
    """End a process: asked to, it gives back what it took from the system; one that does not listen is killed."""
    process.terminate()
    process.join(LAST_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _work(cell: Cell, place: Place, seconds: float, answer: Connection) -> None:
    """What the process of a cell does."""
    until = time.monotonic() + seconds
    end_with_parent()
    keep_freed_memory()
    torch.set_num_threads(place.threads)
    try:
        with raised_when_terminated():
            run_cell(cell, place, until)
        answer.send((DONE, ""))
    except (OutOfTime, KeyboardInterrupt):
        answer.send((STOPPED, ""))
    except (UserError, OSError) as error:
        answer.send((REFUSED, " ".join(str(error).split())))
    except Exception as error:
        print_exc()
        answer.send((FAILED, repr(error)))


def run_cell(cell: Cell, place: Place, until: float | None = None) -> None:
    """Run a cell in its folder, or go on with it.

    Args:
        cell: What to run.
        place: Where and with what.
        until: When to stop, as ``time.monotonic`` counts; never if absent.

    Raises:
        OutOfTime: The time is up; the next call goes on.
        UserError: It cannot be run here.
    """
    folder, recipe = place.results / cell.path, cell.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    begun = (folder / "environment.json").is_file()
    if "continual" in recipe.values:
        recipe, session = _session(cell, recipe, place, until, "continual")
        study = continual.prepare(recipe, session, folder if begun else None)
        (replace(study, folder=folder) if begun else study.at(folder)).run()
        return
    with alone_in(folder):
        recipe, session = _session(cell, recipe, place, until, "run")
        prepared = runs.prepare(recipe, session, folder if begun else None)
        Row(cell.row or cell.recipe, prepared.recipe, folder, prepared.data[cell.recipe], session).run()


def _session(cell: Cell, recipe: Recipe, place: Place, until: float | None, command: str) -> tuple[Recipe, Session]:
    """The recipe and session of a cell: as they were begun, or new, with the data where they lie here."""
    folder = place.results / cell.path
    if (folder / "environment.json").is_file():
        recipe, session = runs.reread(folder, torch.device(place.device), Display(), None, command)
    else:
        session = Session(torch.device(place.device), Display(), cell.overrides, command=command)
    reuse = place.reuse or recipe["compute"]["reuse"]
    return _reading(recipe, place.data).with_values(compute={"reuse": reuse}), replace(session, until=until)


def _reading(recipe: Recipe, data: Path | None) -> Recipe:
    """The recipe with the place of its data here, which a result does not tell of."""
    name = recipe["data"]["name"]
    if data is None or name == "digits":
        return recipe.with_values(data={"path": None})
    if not data.is_dir():
        raise UserError(f"--data must name a folder with data sets in it; {data} is none")
    plain = {_plain(folder.name): folder for folder in sorted(data.iterdir()) if folder.is_dir()}
    if _plain(name) not in plain:
        raise UserError(f"{data} holds no folder {name}; it has {', '.join(f.name for f in plain.values()) or 'none'}")
    return recipe.with_values(data={"path": str(plain[_plain(name)].resolve())})


def _plain(name: str) -> str:
    """A name by its letters and digits: fashion-mnist and fashion_mnist are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
