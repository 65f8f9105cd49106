"""The parts of a report's page: tables, figures and the page itself, one HTML file that loads nothing else.

A text given to these functions may hold any characters: they escape it.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

ROWS = 20
"""A table with more than twice as many rows shows this number of first and of last ones."""
CONFUSIONS = 10
"""Pairs of classes that are listed below a confusion matrix."""
MATRIX_CLASSES = 20
"""A confusion matrix shows at most this number of classes."""
# Class names are written as they are: a dollar sign starts no formula. Texts stay texts; equal plots have equal ids.
FIGURE_STYLE = {
    'text.parse_math': False,
    'svg.fonttype': 'none',
    'svg.hashsalt': 'mmitpn',
    'savefig.facecolor': 'none',
    'axes.facecolor': 'none',
}
# The colors of visualization/curves.py -> those of the page, which depend on the reader's light or dark mode.
_COLORS = {
    '#000000': 'currentColor',
    '#555555': 'var(--muted)',
    '#999999': 'var(--muted)',
    '#e4e4e4': 'var(--line)',
}


@dataclass(frozen=True)
class Section:
    """A headline of the page, and the HTML below it."""

    title: str
    html: str


def number(value: float | None, digits: int = 3) -> str:
    """Format a figure; a dash for none: None, NaN, and the -1 of COCO."""
    if value is None or math.isnan(value) or value == -1:
        return '-'
    return f'{value:,}' if isinstance(value, int) else f'{value:.{digits}f}'


def note(text: str) -> str:
    """A remark below a headline."""
    return f'<p class="note">{escape(text)}</p>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, bars: Sequence[float | None] | None = None) -> str:
    """Format a table, the first column to the left and the others to the right.

    Args:
        headings: One per column.
        rows: Texts of each row. Of more than 40, the ones in the middle are collapsed.
        bars: From 0 to 1 for each row: a bar behind its second column.
    """
    head = '<tr>' + ''.join(f'<th>{escape(text)}</th>' for text in headings) + '</tr>'
    lines = []
    for index, (first, *rest) in enumerate(rows):
        cells = [f'<td>{escape(text)}</td>' for text in rest]
        bar = bars[index] if bars is not None else None
        if bar is not None and not math.isnan(bar):
            cells[0] = f'<td class="bar" style="--v:{100 * min(max(bar, 0), 1):.1f}%">{escape(rest[0])}</td>'
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{"".join(cells)}</tr>')
    if len(lines) <= 2 * ROWS:
        return _scroll(f'<table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table>')
    # One table with three bodies, so that the columns keep their widths; the box shows the one in the middle.
    hidden = len(lines) - 2 * ROWS
    toggle = (
        f'<tbody class="more"><tr><td colspan="{len(headings)}"><label><input type="checkbox"> show the {hidden} rows'
        ' between</label></td></tr></tbody>'
    )
    first, between, last = lines[:ROWS], lines[ROWS:-ROWS], lines[-ROWS:]
    return _scroll(
        f'<table><thead>{head}</thead><tbody>{"".join(first)}</tbody>{toggle}'
        f'<tbody class="between">{"".join(between)}</tbody><tbody>{"".join(last)}</tbody></table>'
    )


def class_table(
    names: Sequence[str],
    headings: Sequence[str],
    every: Sequence[str],
    rows: Sequence[Sequence[str]],
    values: Sequence[float],
    mean: float,
) -> str:
    """Format a table of classes, best first, below a row of all; classes without a value are named in a note.

    Args:
        names: Of the classes.
        headings: Of the columns after the name.
        every: Their texts for all classes together.
        rows: Their texts for each class.
        values: The figure of the first column for each class, from 0 to 1, or NaN.
        mean: The same for all classes.
    """
    order = sorted((k for k, value in enumerate(values) if not math.isnan(value)), key=lambda k: -values[k])
    lines = [('all classes', *every), *((names[k], *rows[k]) for k in order)]
    absent = [name for name, value in zip(names, values, strict=True) if math.isnan(value)]
    remark = note(f'Not in these images ({len(absent)}): {", ".join(absent)}') if absent else ''
    return table(('class', *headings), lines, bars=[mean, *(values[k] for k in order)]) + remark


def confusion_matrix(matrix: np.ndarray, names: Sequence[str], *, background: bool, unit: str, remark: str = '') -> str:
    """Format a confusion matrix, with the classes that are confused most if there are many.

    Args:
        matrix: Counts, a row per class of the ground truth and a column per predicted one. With ``background`` the last
            column counts objects that were missed, and the last row predictions where there is no object.
        names: Of the classes, without the background.
        background: Whether the matrix has that row and column.
        unit: What is counted.
        remark: How, for the note above.
    """
    number_of = len(names)
    inner = matrix[:number_of, :number_of]
    wrong = inner - np.diag(np.diag(inner))
    chosen = np.arange(number_of)
    text = f'{unit.capitalize()}, and the shade is their fraction of the row.'
    if number_of > MATRIX_CLASSES:
        most = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind='stable')[:MATRIX_CLASSES]
        chosen = np.sort(most)
        text += f' Of {number_of} classes the {MATRIX_CLASSES} that are confused most.'
    if background:
        text += ' Column "missed": objects without a prediction. Row "no object": predictions without an object.'
    order = [*chosen.tolist(), *([number_of] if background else [])]
    rows, columns = ([*names, last] for last in ('no object', 'missed'))
    totals = np.maximum(matrix.sum(axis=1), 1)
    head = ''.join(f'<th><span>{escape(columns[j])}</span></th>' for j in order)
    lines = []
    for i in order:
        cells = []
        for j in order:
            percent = 100 * int(matrix[i, j]) / totals[i]
            kind = 'none' if i == j == number_of else 'right' if i == j else 'wrong'
            title = f'{percent:.1f} % of the row'
            cells.append(
                f'<td class="{kind}" style="--v:{percent:.0f}%" title="{title}">{_short(int(matrix[i, j]))}</td>'
            )
        lines.append(f'<tr><th scope="row">{escape(rows[i])}</th>{"".join(cells)}</tr>')
    corner = 'ground truth \u2193 predicted \u2192'
    grid = (
        f'<table class="matrix"><thead><tr><th>{corner}</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )
    pairs = np.argwhere(wrong > 0)
    pairs = pairs[np.argsort(-wrong[tuple(pairs.T)], kind='stable')][:CONFUSIONS]
    top = [(names[i], names[j], number(int(wrong[i, j])), f'{100 * wrong[i, j] / totals[i]:.1f} %') for i, j in pairs]
    confused = table(('ground truth', 'predicted as', unit, 'of the ground truth'), top) if top else ''
    return note(f'{text} {remark}') + _scroll(grid) + (f'<h3>Most frequent confusions</h3>{confused}' if top else '')


def _short(count: int) -> str:
    """A count in few characters: 12,345,678 is 12.3M; nothing for 0."""
    for size, letter in ((10**9, 'G'), (10**6, 'M'), (10**3, 'k')):
        if count >= 10 * size:
            return f'{count / size:.3g}{letter}' if count < 1000 * size else f'{count // size}{letter}'
    return str(count or '')


def figure_svg(figure: Figure, label: str) -> str:
    """Embed a plot as SVG in the colors of the page.

    Args:
        figure: The plot, drawn in ``mpl.rc_context(FIGURE_STYLE)``.
        label: What it shows, for a reader who does not see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context(FIGURE_STYLE):
        figure.savefig(buffer, format='svg', metadata={'Creator': None, 'Date': None, 'Format': None, 'Type': None})
    svg = buffer.getvalue()
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', '', svg[svg.index('<svg') :])  # HTML knows them
    for color, variable in _COLORS.items():
        svg = svg.replace(color, variable)
    return _scroll(f'<figure role="img" aria-label="{escape(label)}">{svg}</figure>')


def figure_jpeg(figure: Figure, label: str) -> str:
    """Embed a grid of images as JPEG."""
    buffer = io.BytesIO()
    with mpl.rc_context(FIGURE_STYLE):
        figure.savefig(buffer, format='jpeg', dpi=figure.dpi, facecolor='white', pil_kwargs={'quality': 85})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(label)}" src="data:image/jpeg;base64,{data}">'


def collapsed(title: str, text: str) -> str:
    """A text of many lines that opens on a click."""
    return f'<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>'


def _scroll(html: str) -> str:
    return f'<div class="scroll">{html}</div>'


def page(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The complete HTML document.

    Args:
        title: Its headline.
        facts: Name and value of what stands below it.
        sections: In their order.
    """
    names = [re.sub(r'\W+', '-', section.title.lower()) for section in sections]
    links = ''.join(f'<a href="#{name}">{escape(one.title)}</a>' for name, one in zip(names, sections, strict=True))
    body = ''.join(
        f'<section id="{name}"><h2>{escape(one.title)}</h2>{one.html}</section>'
        for name, one in zip(names, sections, strict=True)
    )
    facts_html = ''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in facts)
    return _PAGE.substitute(title=escape(title), style=_STYLE, facts=facts_html, links=links, body=body)


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header><h1>$title</h1><dl>$facts</dl><nav>$links</nav></header>
<main>$body</main>
</body>
</html>
""")
_STYLE = """
:root { --paper: #fff; --text: #1c1f24; --muted: #6a7079; --line: #dfe2e6; --card: #f6f7f9; --good: #2a9d64;
  --bad: #d9534f; --accent: #3b73d1; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --text: #e6e8eb; --muted: #9aa2ad; --line: #333941;
  --card: #1e2228; --good: #2f9e68; --bad: #c9504c; --accent: #7aa7f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.5rem; background: var(--paper); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
a { color: var(--accent); text-decoration: none; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 1rem; }
dt, .note { color: var(--muted); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.note { margin: .3rem 0 .7rem; max-width: 75ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 500; }
thead th { color: var(--muted); font-size: .85rem; }
tbody th { max-width: 22rem; overflow: hidden; text-overflow: ellipsis; }
.bar { background: linear-gradient(to right, color-mix(in srgb, var(--accent) 28%, transparent) var(--v), transparent
  var(--v)); min-width: 8rem; }
.between { display: none; }
.more:has(input:checked) + .between { display: table-row-group; }
.more td { color: var(--accent); }
.matrix th, .matrix td { border: 0; padding: .25rem .3rem; font-size: .85rem; }
.matrix td { min-width: 2.1rem; text-align: center; border: 1px solid var(--paper); background: var(--card); }
.matrix thead th { vertical-align: bottom; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 11rem; overflow: hidden; }
.matrix td.right { background: color-mix(in srgb, var(--good) calc(var(--v) * .8), var(--card)); }
.matrix td.none { background: none; }
.matrix td.wrong { background: color-mix(in srgb, var(--bad) calc(var(--v) * .8), var(--card)); }
figure { margin: 0; min-width: 640px; }
svg { display: block; max-width: 100%; height: auto; }
svg text { fill: currentColor; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; padding: .8rem; background: var(--card); border-radius: 4px; font-size: .8rem; }
"""
