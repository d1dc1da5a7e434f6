"""Tables as Markdown, and the pages that hold them between markers."""

import re
from pathlib import Path

from condensate.atomic import replacing
from condensate.errors import UserError
from condensate.tables.evidence import Quoted
from condensate.tables.kinds import KINDS, told
from condensate.tables.layout import Table, chosen

MARKED = re.compile(r"(<!-- table: (?P<name>[a-z0-9-]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def markdown(table: Table, results: Path) -> str:
    """A table as Markdown, with what its numbers are of."""
    quoted = Quoted(results)
    lines = KINDS[table.kind](table, results, quoted)
    head, *rows = lines
    text = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    notes = [note for note in (told(table, results), quoted.notes()) if note]
    return "\n".join([f"**{table.title}**", "", *text, "", *notes]) + "\n"


def insert(text: str, results: Path) -> str:
    """A page with all tables that it has markers for made anew.

    Raises:
        UserError: A marker names no table, or has no end.
    """
    if text.count("<!-- table: ") != len(MARKED.findall(text)):
        raise UserError("every <!-- table: NAME --> needs an <!-- end of table --> after it")

    def anew(found: re.Match[str]) -> str:
        (table,) = chosen([found["name"]])
        return f"{found[1]}\n{markdown(table, results)}\n{found[4]}"

    return MARKED.sub(anew, text)


def rewrite(page: Path, results: Path) -> bool:
    """Make the tables of a page anew; whether anything changed."""
    try:
        before = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{page} is not a page of text: {error}") from error
    after = insert(before, results)
    if after != before:
        with replacing(page) as part:
            part.write_text(after, encoding="utf-8")
    return after != before
