"""A comparison of formats as a table, as JSON and as a plot."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from mmitpn.atomic import write_atomic
from mmitpn.visualization.image_grid import save_figure

from .formats import TIE, FormatComparison, ModelMeasurement

MARKERS = {'PyTorch': 'o', 'ONNX': 's', 'OpenVINO': '^'}
BUSY = 0.25
"""Load of the machine before the measurement, per core, from which a note says so."""


def make_table(comparison: FormatComparison) -> Table:
    """The table of a comparison, one row for each model."""
    reference, batch = comparison.reference, comparison.batch
    table = Table(title=_title(comparison), title_justify='left')
    for heading in ('model', 'runtime', 'precision'):
        table.add_column(heading, no_wrap=True, overflow='fold')
    headline = comparison.models[0].headline
    headings = [] if headline is None else [headline[0]]
    headings += ['ms, batch 1: median \\[p95]', f'times as fast as {reference.name}']
    headings += [f'images/s, batch {batch}', 'file MB', 'peak memory MB']
    for heading in headings:
        table.add_column(heading, justify='right')
    tied = {size: {name for pair in comparison.ties(size) for name in pair} for size in {1, batch}}
    for one in comparison.models:
        cells = [one.name, one.runtime, one.precision]
        if headline is not None:
            cells.append(f'{one.headline[1]:.1f}')
        cells += [
            f'{_mark(one, tied[1])}{1e3 * one.median_seconds(1):.1f} \\[{1e3 * one.p95_seconds(1):.1f}]'
            if 1 in one.seconds
            else '-',
            _speedup(comparison, one),
            f'{_mark(one, tied[batch])}{batch / one.median_seconds(batch):.2f}' if batch in one.seconds else '-',
            '-' if one.file_bytes is None else f'{one.file_bytes / 1e6:.1f}',
            ' / '.join(f'{one.memory_bytes(size) / 1e6:.0f}' for size in one.seconds),
        ]
        table.add_row(*cells)
    return table


def describe(comparison: FormatComparison) -> list[str]:
    """What a reader of the table needs to know, one sentence a line."""
    batch, machine = comparison.batch, comparison.machine
    cores = f'{machine["processor"]}, {machine["cores"]} cores ({comparison.instructions})'
    threads = f'{comparison.threads} thread{"" if comparison.threads == 1 else "s"}'
    lines = [f'processor: {cores}; {threads}']
    for size in sorted({1, batch}):
        pairs = ', '.join(' and '.join(pair) for pair in comparison.ties(size))
        if pairs:
            lines.append(f'~ less than {TIE:.0%} apart, so equal, at batch {size}: {pairs}')
    rounds = len(next(iter(comparison.models[0].seconds.values())))
    lines.append(
        'ms, images/s: the network on a prepared batch, without decoding, preprocessing, post-processing; median over'
        f' {rounds} rounds in turns'
    )
    batches = ', then '.join(map(str, sorted({1, batch})))
    lines.append(f'peak memory at batch {batches}: without what the process allocated before it loaded the model')
    load = machine['load_average'][0]
    if load > BUSY * machine['cores']:
        lines.append(f'the machine was busy: load {load:.1f} on {machine["cores"]} cores before the measurement')
    return lines


def _title(comparison: FormatComparison) -> str:
    height, width = comparison.size
    data = '' if comparison.data is None else f', {comparison.images} images of {Path(comparison.data).stem}'
    return f'{height}x{width}{data}'


def _mark(one: ModelMeasurement, tied: set[str]) -> str:
    return '~' if one.name in tied else ''


def _speedup(comparison: FormatComparison, one: ModelMeasurement) -> str:
    """At batch 1, and at the larger batch where a file takes no other."""
    for batch in (1, comparison.batch):
        value = comparison.speedup(one, comparison.reference, batch)
        if value is not None:
            return f'{value:.2f}' + ('' if batch == 1 else f' (batch {batch})')
    return '-'


def write_json(comparison: FormatComparison, path: Path) -> Path:
    """Write everything that was measured, each run too."""
    write_atomic(path, (json.dumps(comparison.to_dict(), indent=2) + '\n').encode())
    return path


# --- the plot ---------------------------------------------------------------------------------------------------------


def draw_comparison(comparison: FormatComparison, path: Path) -> Path:
    """Draw accuracy over latency as a PNG file; without accuracy a bar of latency for each model.

    Args:
        comparison: The comparison.
        path: The file.

    Returns:
        The path.
    """
    return save_figure(plot_comparison(comparison), path)


def plot_comparison(comparison: FormatComparison) -> Figure:
    """The figure of :func:`draw_comparison`."""
    batch = 1 if all(1 in one.seconds for one in comparison.models) else comparison.batch
    models = sorted(
        (one for one in comparison.models if batch in one.seconds), key=lambda one: one.median_seconds(batch)
    )
    has_accuracy = comparison.models[0].headline is not None
    height = 4.5 if has_accuracy else 1.6 + 0.45 * len(models)
    figure = Figure(figsize=(9, height), dpi=100, layout='constrained')
    axes = figure.subplots()
    axes.set_title(f'{_title(comparison)}, {comparison.machine["processor"]}', loc='left', fontsize=11)
    axes.set_xlabel(f'latency at batch {batch} in ms: median, line to the 95th percentile')
    (_plot_points if has_accuracy else _plot_bars)(axes, models, batch)
    axes.set_xlim(left=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color('#999999')
    axes.tick_params(colors='#555555', labelsize=9)
    axes.grid(axis='both' if has_accuracy else 'x', color='#e4e4e4', linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


def _plot_points(axes: Axes, models: list[ModelMeasurement], batch: int) -> None:
    values = [one.headline[1] for one in models]
    for index, one in enumerate(models):
        x, p95, value = 1e3 * one.median_seconds(batch), 1e3 * one.p95_seconds(batch), values[index]
        marker = next((marker for name, marker in MARKERS.items() if one.runtime.startswith(name)), 'D')
        label = f'{one.name}\n{one.precision}, {one.runtime}: {value:.1f}, {x:.1f} ms'
        axes.plot([x, p95], [value, value], color=f'C{index % 10}', linewidth=1.4, alpha=0.5)
        axes.plot(x, value, marker, color=f'C{index % 10}', markersize=9, alpha=0.85, label=label, linestyle='none')
    middle, half = (max(values) + min(values)) / 2, max(1.0, 0.75 * (max(values) - min(values)))
    axes.set_ylim(middle - half, middle + half)  # a tenth of a point is not to look like much
    axes.set_ylabel(f'{models[0].headline[0]} in points')
    axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, labelspacing=0.9)


def _plot_bars(axes: Axes, models: list[ModelMeasurement], batch: int) -> None:
    for row, one in enumerate(models):
        x, p95 = 1e3 * one.median_seconds(batch), 1e3 * one.p95_seconds(batch)
        axes.barh(row, x, height=0.6, color='#4c78a8' if not one.is_eager else '#9d9d9d')
        axes.plot([x, p95], [row, row], color='black', linewidth=1.2)
        axes.annotate(f'{x:.1f}', (p95, row), xytext=(5, 0), textcoords='offset points', va='center', fontsize=9)
    axes.set_yticks(range(len(models)), [f'{one.name} ({one.precision}, {one.runtime})' for one in models])
    axes.invert_yaxis()
    axes.set_xlim(right=1.1 * axes.dataLim.x1)  # room for the last number
