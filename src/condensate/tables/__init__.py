"""The papers' tables: which cells they have, what was measured, and the machine that runs what is missing."""

from condensate.tables.evidence import compare, estimate, finished, read
from condensate.tables.layout import Cell, Profile, Table, chosen, queue, tables
from condensate.tables.machine import Outcome, Place, fill, run_cell
from condensate.tables.pages import insert, markdown, rewrite

__all__ = [
    "Cell",
    "Outcome",
    "Place",
    "Profile",
    "Table",
    "chosen",
    "compare",
    "estimate",
    "fill",
    "finished",
    "insert",
    "markdown",
    "queue",
    "read",
    "rewrite",
    "run_cell",
    "tables",
]
