"""What a run shows while it goes on and when it ends."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 15.0


class Step(Protocol):
    """Reports how far a piece of work has come."""

    def __call__(self, done: int, note: str = "") -> None:
        """So many units are done; a short note stands beside."""


class Display:
    """Progress with rate and time left: a live bar on a terminal, else a plain line every fifteen seconds.

    Args:
        console: Where to print; standard error if absent, so that results can be piped.
        quiet: Whether nothing is shown, as by all processes but the first.
    """

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet, force_terminal=False if quiet else None)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def work(self, title: str, total: int, done: int = 0) -> Iterator[Step]:
        """A piece of work of ``total`` units, ``done`` of them before."""
        if not self.console.is_terminal:
            yield self._plain(title, total, done)
            return
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=self.console, transient=True,
        )  # fmt: skip
        with bar:
            task = bar.add_task(title, total=total, completed=done, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)

    def _plain(self, title: str, total: int, before: int) -> Step:
        began = last = time.monotonic()

        def step(done: int, note: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PLAIN_SECONDS and done < total:
                last = now
                rate = (done - before) / (now - began)
                left = f", {(total - done) / rate:.0f} s left" if rate else ""
                self.say(f"{title}: {done} of {total}, {rate:.2g}/s{left} {note}".rstrip())

        return step


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Units a second."""
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], prose: bool = False) -> None:
    """Print a table on standard output: names, then columns of numbers, or of prose that may be folded."""
    table = Table()
    for number, column in enumerate(columns):
        text = prose or number == 0
        table.add_column(
            column,
            justify="left" if text else "right",
            no_wrap=number == 0 or not (prose or sys.stdout.isatty()),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(width=None if sys.stdout.isatty() else 120)
    if not prose and not sys.stdout.isatty():  # numbers must never be cut off
        console.width = max(120, console.measure(table, options=console.options.update(max_width=10_000)).maximum)
    console.print(title, style="italic", markup=False, highlight=False)
    console.print(table)


def percent(mean: float, std: float | None) -> str:
    """An accuracy of 0..1 with its spread, in percent."""
    return f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


def counted(number: int, what: str) -> str:
    """So many of it, in words."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in words of the right size."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(amount: Any) -> str:
    """Bytes in words of the right size."""
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
