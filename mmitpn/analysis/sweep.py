"""Token reduction against the global path: size x method x share of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from mmitpn.benchmark.case import BenchmarkCase
from mmitpn.benchmark.worker import run_job

from .methods import backbone_settings, drops_tokens

PART = 'backbone+pyramid'
BASELINE = 'global'


@dataclass(frozen=True)
class SweepCase:
    """One row: a method with a ratio of kept tokens, and what is measured."""

    method: str
    keep_ratio: float
    case: BenchmarkCase


def sweep_cases(
    arch: str,
    size: tuple[int, int],
    *,
    methods: Sequence[str],
    keep_ratios: Sequence[float],
    dtypes: Sequence[str] = ('fp32',),
    **settings: Any,
) -> list[SweepCase]:
    """The rows of one arch at one size, the global path first; methods without a share come once for each dtype."""
    rows = [(BASELINE, 1.0)]
    for method in methods:
        shares = keep_ratios if drops_tokens(method) else (1.0,)
        rows += [(method, share) for share in shares if method != BASELINE]
    return [
        SweepCase(
            method,
            share,
            BenchmarkCase(
                PART, size, arch=arch, backbone=backbone_settings(method, keep_ratio=share), dtype=dtype, **settings
            ),
        )
        for dtype in dtypes
        for method, share in rows
    ]


def measure_sweep(
    cases: Sequence[SweepCase],
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
    for one in cases:
        memory.append(run_job('memory', [one.case], threads=threads, tensors=True))
        advance()
    settings = {'threads': threads, 'seconds': seconds, 'min_rounds': min_rounds}
    speed = run_job('speed', [one.case for one in cases], module='mmitpn.analysis.bookkeeping', **settings)
    advance()
    rows = []
    base_speed, base_memory = speed['cases'][0], memory[0]
    for one, row, used in zip(cases, speed['cases'], memory, strict=True):
        speedups = [ours / theirs for ours, theirs in zip(base_speed['seconds'], row['seconds'], strict=True)]
        rows.append(
            {
                'arch': one.case.arch,
                'size': list(one.case.size),
                'dtype': one.case.dtype,
                'method': one.method,
                'keep_ratio': one.keep_ratio,
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
