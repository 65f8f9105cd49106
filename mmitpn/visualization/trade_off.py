"""Speed against accuracy, one point a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_trade_off(
    rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Mapping[str, float]]], out_file: str | Path
) -> Path:
    """Draw a PNG with one panel a task.

    Args:
        rows: Figures of a sweep (``measure_sweep``) at one size: ``method``, ``speedup``, ``arch``, ``size``.
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
            middle = mean(values)
            axes.errorbar(
                speed[name],
                middle,
                yerr=[[middle - min(values)], [max(values) - middle]],
                fmt='o',
                capsize=4,
                color=f'C{index}',
                label=f'{name} ({middle:.3f}, {speed[name]:.2f}x)',
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
