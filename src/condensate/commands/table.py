"""The command table: what was measured for the papers' tables, and the machine that fills them."""

import argparse
import math
from pathlib import Path

import torch

from condensate import tables
from condensate.commands.base import Command, chosen_device, machine_options
from condensate.console import Display, duration
from condensate.errors import UserError
from condensate.recipe import Values

SHOW, RUN = "show", "run"


def _table_options(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(tables.tables())
    parser.add_argument("what", choices=(SHOW, RUN), help="print tables as Markdown, or run cells that are missing")
    parser.add_argument(
        "names", nargs="*", default=[], metavar="TABLE", help=f"which; absent: all, or those for the device: {known}"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="of all cells (results)")
    parser.add_argument("--into", type=Path, nargs="+", metavar="PAGE", help="show: renew the tables between markers")
    parser.add_argument("--minutes", type=_minutes, metavar="M", help="run: stop after so many; 0 tells what is next")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="run: folder of data sets, as in DIR/cifar10/*.parquet"
    )
    parser.add_argument("--reuse", action="store_true", help="run: keep real features in the cache for other cells")
    machine_options(parser)


def _minutes(text: str) -> float:
    """A number of at least 0."""
    try:
        read = float(text)
    except ValueError:
        read = math.nan
    if not 0 <= read < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of minutes, at least 0, got {text!r}")
    return read


def _table(options: argparse.Namespace, keys: Values) -> None:
    if options.what == SHOW:
        _show(options)
    else:
        _run(options)


def _show(options: argparse.Namespace) -> None:
    if options.minutes is not None or options.data is not None or options.reuse:
        raise UserError("--minutes, --data and --reuse are for table run; table show reads what is there")
    if not options.results.is_dir():
        raise UserError(f"no folder {options.results} of results; name it with --results, or fill one by table run")
    if options.into:
        if options.names:
            raise UserError("the markers in a page name its tables: give no TABLE with --into")
        for page in options.into:
            if not page.is_file():
                raise UserError(f"no page {page}")
            print(f"{page}: {'renewed' if tables.rewrite(page, options.results) else 'as it was'}")
        return
    print("\n".join(tables.markdown(table, options.results) for table in tables.chosen(options.names)))


def _run(options: argparse.Namespace) -> None:
    if options.minutes is None:
        raise UserError("say how long: condensate table run --minutes 60 (0 tells what is next)")
    if options.into:
        raise UserError("--into is for table show")
    if options.data is not None and not options.data.is_dir():
        raise UserError(f"no folder {options.data} of data sets; expected one as in {options.data / 'cifar10'}")
    device, display = chosen_device(options.device), Display()
    cells = tables.queue(device.type, options.names)
    missing = [cell for cell in cells if not tables.finished(options.results, cell)]
    display.say(f"{len(cells) - len(missing)} of {len(cells)} cells done")
    if not options.minutes:
        for cell in missing[:10]:
            display.say(f"next: {cell.path}")
        return
    place = tables.Place(options.results, str(device), torch.get_num_threads(), options.data, options.reuse)
    outcome = tables.fill(cells, place, 60 * options.minutes, display)
    for path in outcome.stopped:
        display.say(f"{path} goes on next time")
    given, refused = duration(60 * options.minutes), len(outcome.refused)
    without = f", {refused} of them left out, for the reasons above" if refused else ""
    print(f"{len(outcome.done)} cells done within {given}, {outcome.left} of {len(cells)} left{without}")
    if outcome.failed:
        raise RuntimeError(f"{', '.join(outcome.failed)}: a fault of the program, see above")


TABLE = Command(
    "Show the papers' tables as far as they were measured, or run their missing cells.",
    _table_options,
    _table,
    keys=False,
)
