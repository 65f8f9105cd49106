"""Token reduction against the global path: size x method x share of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from .cases import Case
from .methods import drops_tokens
from .subprocess_job import run_job

PART = 'backbone+pyramid'
BASELINE = 'global'


def sweep_cases(
    arch: str,
    size: tuple[int, int],
    *,
    methods: Sequence[str],
    keep_ratios: Sequence[float],
    dtypes: Sequence[str] = ('fp32',),
    **settings: Any,
) -> list[Case]:
    """The rows of one arch at one size, the global path first; methods without a share come once for each dtype."""
    rows = [(BASELINE, 1.0)]
    for method in methods:
        shares = keep_ratios if drops_tokens(method) else (1.0,)
        rows += [(method, share) for share in shares if method != BASELINE]
    return [
        Case(PART, size, arch=arch, method=method, keep_ratio=share, dtype=dtype, **settings)
        for dtype in dtypes
        for method, share in rows
    ]


def measure_sweep(
    cases: Sequence[Case],
    *,
    threads: int | None,
    seconds: float,
    min_rounds: int,
    advance: Callable[[], Any] = lambda: None,
) -> list[dict[str, Any]]:
    """Figures of one arch at one size: each beside its ratio to the global path of the same run.

    Args:
        cases: What :func:`sweep_cases` gave.
        threads: Of the CPU.
        seconds: Time for all, at least.
        min_rounds: Runs of each, at least.
        advance: Called after each of the ``len(cases) + 1`` steps: a case's memory, and the speed of all.

    Returns:
        One dict a case; ``speedup`` and ``mac_ratio`` are global / this, ``speedups`` those of every round. Global is
        the first case: where there are several dtypes, that of the first one.
    """
    memory = []
    for case in cases:
        memory.append(run_job('memory', [case], threads=threads, tensors=True))
        advance()
    speed = run_job('speed', list(cases), threads=threads, seconds=seconds, min_rounds=min_rounds)
    advance()
    rows = []
    base_speed, base_memory = speed['cases'][0], memory[0]
    for case, row, used in zip(cases, speed['cases'], memory, strict=True):
        speedups = [ours / theirs for ours, theirs in zip(base_speed['seconds'], row['seconds'], strict=True)]
        rows.append(
            {
                'arch': case.arch,
                'size': list(case.size),
                'dtype': case.dtype,
                'method': case.method,
                'keep_ratio': case.keep_ratio,
                'macs': row['macs'],
                'mac_ratio': base_speed['macs'] / row['macs'],
                'seconds': row['seconds'],
                'speedup': median(speedups),
                'speedups': speedups,
                'bookkeeping_share': row['bookkeeping_share'],
                'peak_bytes': used['peak_bytes'],
                'memory_ratio': used['peak_bytes'] / base_memory['peak_bytes'],
                'tensor_bytes': used['tensor_bytes'],
                'tensor_ratio': used['tensor_bytes'] / base_memory['tensor_bytes'],
                'threads': speed['threads'],
                'torch': speed['torch'],
            }
        )
    return rows


def sweep_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The table a person reads."""
    table = Table(title=f'{PART}, one image: ratios to global attention of the same run, in {rows[0]["dtype"]}')
    for heading, side in (
        ('arch', 'left'),
        ('size', 'left'),
        ('type', 'left'),
        ('method', 'left'),
        ('keep', 'right'),
        ('GMAC', 'right'),
        ('global / this, GMAC', 'right'),
        ('global / this, time (range)', 'right'),
        ('handling tokens', 'right'),
        ('this / global, memory of the process, of tensors', 'right'),
    ):
        table.add_column(heading, justify=side)
    for row in rows:
        table.add_row(
            row['arch'],
            'x'.join(map(str, row['size'])),
            row['dtype'],
            row['method'],
            f'{row["keep_ratio"]:g}' if drops_tokens(row['method']) else '',
            f'{row["macs"] / 1e9:.1f}',
            f'{row["mac_ratio"]:.2f}',
            f'{row["speedup"]:.2f} ({min(row["speedups"]):.2f}-{max(row["speedups"]):.2f})',
            f'{row["bookkeeping_share"]:.1%}',
            f'{row["memory_ratio"]:.2f}, {row["tensor_ratio"]:.2f}',
        )
    return table
