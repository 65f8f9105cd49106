"""Tables for logs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def format_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a table as Markdown text, numbers to the right.

    Args:
        headings: Of the columns; the first column is a name.
        rows: The cells.
    """
    from rich.box import MARKDOWN
    from rich.console import Console
    from rich.table import Table

    table = Table(box=MARKDOWN)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify='right' if index else 'left', no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(width=10_000, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return '\n'.join(line.rstrip() for line in captured.get().strip().splitlines())
