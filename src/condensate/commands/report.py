"""The command report: one HTML file of what was run."""

import argparse
from pathlib import Path

from condensate.commands.base import Command
from condensate.errors import UserError
from condensate.recipe import Values
from condensate.report import NAME, save_report


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", metavar="FOLDER", type=Path, nargs="+", help="of run (with or without --seeds), continual or privacy"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"where to; absent: {NAME} in the folder, if it is one"
    )


def _report(options: argparse.Namespace, keys: Values) -> None:
    if options.out is None and len(options.folders) > 1:
        raise UserError(f"say where the report of {len(options.folders)} folders goes, as in --out {NAME}")
    path: Path = options.out or options.folders[0] / NAME
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, as in --out {path / NAME}")
    if path.suffix != ".html":
        raise UserError(f"a report is an HTML file: name one that ends in .html, as in --out {NAME}; got {path}")
    save_report(options.folders, path)
    print(f"report: {path}")


REPORT = Command(
    "Show runs and studies in one HTML file: pictures, accuracy, cost.", _report_options, _report, keys=False
)
