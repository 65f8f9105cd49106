"""What is to be reached on an H100: B and its pyramid at 1024x1024, bf16, compiled, against the rows of a report.

The aims are docs/gpu.md's. They hold where each row was measured in the same run, on one card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]
BATCH = 8


def row_name(variant: str, *, mode: str = 'compiled', batch: int = BATCH) -> str:
    """Name of a row of the section ``tokens``.

    Args:
        variant: What the backbone does: ``'global'``, ``'gathering'``, ``'both'``...
        mode: ``'eager'``, ``'compiled'`` or ``'CUDA graphs'``.
        batch: Number of images.
    """
    return f'{mode}, batch {batch}, {variant}'


def _time(rows: Rows, name: str) -> float | None:
    return rows.get(f'tokens: {name}', {}).get('ms/image')


def _ratio(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first / second


def _speedup(rows: Rows, variant: str) -> float | None:
    return _ratio(_time(rows, row_name('global')), _time(rows, row_name(variant)))


def _batch_1(rows: Rows) -> float | None:
    return _ratio(_time(rows, row_name('global')), _time(rows, row_name('global', mode='CUDA graphs', batch=1)))


# Aim, unit, what is measured, limit, whether the limit is the largest value.
AIMS: tuple[tuple[str, str, Callable[[Rows], float | None], float, bool], ...] = (
    ('global attention, batch 8', 'ms per image', lambda rows: _time(rows, row_name('global')), 4.4, True),
    ('gathering against global attention', 'times as fast', lambda rows: _speedup(rows, 'gathering'), 1.5, False),
    ('gathering and migration against global', 'times as fast', lambda rows: _speedup(rows, 'both'), 2.0, False),
    ('batch 1 with CUDA graphs', 'of the rate of batch 8', _batch_1, 0.9, False),
)


def aims_table(rows: Rows) -> list[str]:
    """The section of the Markdown, as lines: each aim, what was measured, and whether it is reached.

    Args:
        rows: Key -> row of a report.
    """
    lines = [
        '## Aims',
        '',
        'B and its pyramid, 1024x1024, bf16, compiled; the aims are for an H100.',
        '',
        '| | aim | measured | reached |',
        '|---|---|---|---|',
    ]
    for name, unit, measure, limit, at_most in AIMS:
        value = measure(rows)
        bound = f'{"at most" if at_most else "at least"} {limit:g} {unit}'
        if value is None:
            lines.append(f'| {name} | {bound} | not measured | |')
        else:
            reached = value <= limit if at_most else value >= limit
            lines.append(f'| {name} | {bound} | {value:.3g} | {"yes" if reached else "no"} |')
    return [*lines, _waits(rows), '']


def _waits(rows: Rows) -> str:
    """The line on waits of the host: how many rows of ``waits`` are within their budget."""
    name = '| waits of the host | as each row of `waits` says |'
    kept = [row['within'] for row in rows.values() if row['section'] == 'waits' and 'within' in row]
    if not kept:
        return f'{name} not measured | |'
    return f'{name} {kept.count("yes")} of {len(kept)} rows within | {"no" if "no" in kept else "yes"} |'
