"""Speed and memory of token reduction against global attention: size x method x fraction of the tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from mmitpn.benchmark.case import BenchmarkCase
from mmitpn.benchmark.worker import run_job

from .methods import backbone_settings, drops_tokens

PART = 'backbone+pyramid'
BASELINE = 'global'
PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class SweepCase:
    """One row of a sweep.

    Attributes:
        method: A name of ``METHODS``.
        keep_ratio: Fraction of the tokens that stay.
        case: What is measured.
    """

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
    """The rows of one arch at one size, global attention first, for one dtype after the other.

    Args:
        arch: Of the backbone.
        size: Height and width of the image in pixels.
        methods: Names of ``METHODS``.
        keep_ratios: Fractions of the tokens; methods that drop none come once for each dtype.
        dtypes: ``'fp32'``, ``'bf16'``.
        **settings: More attributes of every :class:`BenchmarkCase`.
    """
    rows = [(BASELINE, 1.0)]
    for method in methods:
        ratios = keep_ratios if drops_tokens(method) else (1.0,)
        rows += [(method, ratio) for ratio in ratios if method != BASELINE]
    return [
        SweepCase(
            method,
            ratio,
            BenchmarkCase(
                PART, size, arch=arch, backbone=backbone_settings(method, keep_ratio=ratio), dtype=dtype, **settings
            ),
        )
        for dtype in dtypes
        for method, ratio in rows
    ]


def measure_sweep(
    rows: Sequence[SweepCase],
    *,
    threads: int | None,
    seconds: float,
    min_rounds: int,
    advance: Callable[[], Any] = lambda: None,
) -> list[dict[str, Any]]:
    """Figures of one arch at one size, each with its ratio to global attention of the same run.

    Args:
        rows: What :func:`sweep_cases` returned.
        threads: Of the CPU.
        seconds: Time for all, at least.
        min_rounds: Runs of each, at least.
        advance: Called after each of the ``len(rows) + 1`` steps: the memory of each row, and the speed of all.

    Returns:
        One dict per row; ``speedup`` and ``mac_ratio`` are global / this, ``speedups`` those of every round. Global is
        the first row: where there are several dtypes, that of the first one.
    """
    job = {'module': 'token_study.worker', 'environment': {'PYTHONPATH': python_path()}, 'threads': threads}
    memory = []
    for row in rows:
        memory.append(run_job('memory', [row.case], tensors=True, **job))
        advance()
    speed = run_job('speed', [row.case for row in rows], seconds=seconds, min_rounds=min_rounds, **job)
    advance()
    results = []
    base_speed, base_memory = speed['cases'][0], memory[0]
    for row, timed, used in zip(rows, speed['cases'], memory, strict=True):
        speedups = [base / this for base, this in zip(base_speed['seconds'], timed['seconds'], strict=True)]
        results.append(
            {
                'arch': row.case.arch,
                'size': list(row.case.size),
                'dtype': row.case.dtype,
                'method': row.method,
                'keep_ratio': row.keep_ratio,
                'macs': timed['macs'],
                'mac_ratio': base_speed['macs'] / timed['macs'],
                'seconds': timed['seconds'],
                'speedup': median(speedups),
                'speedups': speedups,
                'token_overhead': timed['token_overhead'],
                'peak_bytes': used['peak_bytes'],
                'memory_ratio': used['peak_bytes'] / base_memory['peak_bytes'],
                'tensor_bytes': used['tensor_bytes'],
                'tensor_ratio': used['tensor_bytes'] / base_memory['tensor_bytes'],
                'threads': speed['threads'],
                'torch': speed['torch'],
            }
        )
    return results


def python_path() -> str:
    """Where the measuring process finds this study and, in a clone without an installation, the package."""
    return os.pathsep.join(filter(None, (str(PROJECT), str(PROJECT.parents[1]), os.environ.get('PYTHONPATH'))))


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The table of a sweep."""
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
        ('token overhead', 'right'),
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
            f'{row["token_overhead"]:.1%}',
            f'{row["memory_ratio"]:.2f}, {row["tensor_ratio"]:.2f}',
        )
    return table


def draw_trade_off(
    rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Mapping[str, float]]], out_file: str | Path
) -> Path:
    """Draw speed against accuracy, one panel per task and one point per method.

    Args:
        rows: Figures of a sweep at one size: ``method``, ``speedup``, ``arch``, ``size``.
        scores: Task -> method -> seed -> score. Methods without scores, or without a row, are left out.
        out_file: The PNG; its folder is made.

    Returns:
        Its path.

    Raises:
        ValueError: If no method has both a speed and a score.
    """
    speed = {row['method']: row['speedup'] for row in rows}
    tasks = {task: [name for name in by_method if name in speed] for task, by_method in scores.items()}
    tasks = {task: names for task, names in tasks.items() if names}
    if not tasks:
        raise ValueError(f'no method has both a speed ({", ".join(speed)}) and a score: nothing to draw')
    figure = Figure(figsize=(5.6 * len(tasks), 4.6), dpi=110, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    for axes, (task, names) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        for index, name in enumerate(names):
            values = list(scores[task][name].values())
            average = mean(values)
            axes.errorbar(
                speed[name],
                average,
                yerr=[[average - min(values)], [max(values) - average]],
                fmt='o',
                capsize=4,
                color=f'C{index}',
                label=f'{name} ({average:.3f}, {speed[name]:.2f}x)',
            )
        row = rows[0]
        axes.set_xlabel(f'speed, times global ({row["arch"]}, {"x".join(map(str, row["size"]))}, fp32)')
        axes.set_ylabel(task)
        axes.grid(visible=True, color='#e4e4e4')
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, frameon=False, loc='upper center', bbox_to_anchor=(0.5, -0.14), ncol=2)
    figure.suptitle('Mean of the seeds and their range, at the speed of a large network', fontsize=10)
    path = Path(out_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path))
    return path
