"""Tables in logs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table of aligned columns, the first one to the left and the others to the right.

    rich is for tables in a terminal; a log needs this much, also where only torch is installed.

    Args:
        headings: One per column.
        rows: Cells of each row, shown by ``str``.
    """
    cells = [[str(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        ' | '.join(cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(row))
        for row in (zip(line, widths, strict=True) for line in cells)
    ]
    lines.insert(1, '-|-'.join('-' * width for width in widths))
    return '\n'.join(f'|-{line}-|' if number == 1 else f'| {line} |' for number, line in enumerate(lines))
