"""The tables and the figure of the study in 12 blocks: mean IoU of every setting over its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.table import Table

from .depth_settings import DEPTH_METHODS, DepthSetting, depth_settings

SWITCHED, TUNED = 'mean IoU, switched on', 'mean IoU, trained on'
MEDIAN, LOWEST, HIGHEST, FEWER_MACS = 'median', 'lowest', 'highest', 'multiply-adds'
BASELINE = 'global'

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]  # task -> setting -> seed, or figure of a time -> value

_SHAPES = {None: 'o', 4: 's', 8: 'D'}  # side of the windows -> marker
_SIZES = {1.0: 7.0, 0.75: 6.0, 0.5: 4.5, 0.25: 3.0}  # fraction of the tokens -> size of the marker in points
_COLORS = [f'C{i}' for i in range(10)] + ['#000000', '#a6761d', '#1b9e77', '#e7298a', '#7570b3']
_COLORS += [
    '#66a61e',
    '#d95f02',
    '#555555',
    '#b15928',
    '#6a3d9a',
    '#a50f15',
    '#02818a',
    '#fdbf6f',
    '#00ff7f',
    '#ff00ff',
    '#00ced1',
    '#ffd700',
    '#dc143c',
]


@dataclass(frozen=True)
class DepthRow:
    """What is known of a setting.

    Attributes:
        setting: The setting.
        switched: Mean IoU by seed, without training.
        tuned: Mean IoU by seed, trained on with the setting.
        times: For each network the median, lowest and highest time in units of global attention's.
    """

    setting: DepthSetting
    switched: Mapping[str, float]
    tuned: Mapping[str, float]
    times: Mapping[str, tuple[float, float, float]]


def depth_rows(scores: Scores, networks: Sequence[str]) -> list[DepthRow]:
    """All settings that have a mean IoU or a time, in the order of the methods.

    Args:
        scores: Content of the file of scores.
        networks: Names of the timings in it.
    """
    rows = []
    for setting in depth_settings():
        switched, tuned = (scores.get(task, {}).get(setting.name, {}) for task in (SWITCHED, TUNED))
        found = {network: scores.get(network, {}).get(setting.name) for network in networks}
        times = {name: (one[MEDIAN], one[LOWEST], one[HIGHEST]) for name, one in found.items() if one}
        if switched or tuned or times:
            rows.append(DepthRow(setting, switched, tuned, times))
    return rows


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points ``(time, score)`` that no other one beats, by time.

    A point is beaten by one that is at least as good in both and better in one.
    """
    front, best = [], float('-inf')
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def _on_front(rows: Sequence[DepthRow], network: str) -> set[str]:
    """Names of the settings on the front of a network, of those switched on without training, with all seeds."""
    seeds = {seed for row in rows for seed in row.switched}
    known = [row for row in rows if row.switched and set(row.switched) == seeds and network in row.times]
    front = pareto_front([(row.times[network][0], mean(row.switched.values())) for row in known])
    return {known[index].setting.name for index in front}


def _lines(rows: Sequence[DepthRow], networks: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the tables; a time on the front is marked by a star."""
    headings = ['setting', 'mean IoU, switched on (seeds)', f'to {BASELINE}', 'trained on (seeds)', f'to {BASELINE}']
    base = next((row for row in rows if row.setting.name == BASELINE), None)
    fronts = {network: _on_front(rows, network) for network in networks}
    cells = []
    for row in rows:
        times = []
        for network in networks:
            median, low, high = row.times.get(network, (0, 0, 0))
            star = ' *' if row.setting.name in fronts[network] else ''
            times.append(f'{median:.2f} ({low:.2f}-{high:.2f}){star}' if network in row.times else '')
        pairs = (
            ((row.switched, base.switched), (row.tuned, base.tuned)) if base else ((row.switched, {}), (row.tuned, {}))
        )
        scores = [text for own, others in pairs for text in (_seeds(own), _change(own, others))]
        cells.append([row.setting.name, *scores, *times])
    return [*headings, *networks], cells


def _seeds(scores: Mapping[str, float]) -> str:
    each = f' ({", ".join(f"{score:.3f}" for score in scores.values())})' if len(scores) > 1 else ''
    return f'{mean(scores.values()):.3f}{each}' if scores else ''


def _change(scores: Mapping[str, float], base: Mapping[str, float]) -> str:
    """Mean and range of the differences to the baseline of the same seed, in points."""
    found = [100 * (score - base[seed]) for seed, score in scores.items() if seed in base]
    span = f' ({min(found):+.1f} to {max(found):+.1f})' if len(found) > 1 else ''
    return f'{mean(found):+.1f}{span}' if found else ''


def depth_table(rows: Sequence[DepthRow], networks: Sequence[str]) -> Table:
    """The table for a terminal; times are in units of global attention's; a star: on the front."""
    headings, cells = _lines(rows, networks)
    table = Table(title='Differences in points; time: median (range), in units of global attention; *: on the front')
    for index, heading in enumerate(headings):
        table.add_column(heading, justify='left' if index == 0 else 'right')
    for line in cells:
        table.add_row(*line)
    return table


def depth_markdown(rows: Sequence[DepthRow], networks: Sequence[str]) -> str:
    """The same in Markdown."""
    headings, cells = _lines(rows, networks)
    lines = [headings, ['---'] * len(headings), *cells]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines).replace(' *', ' \\*')


def draw_depth(rows: Sequence[DepthRow], networks: Sequence[str], out_file: str | Path) -> Path:
    """Draw mean IoU over time, one panel for each network.

    Colors are methods, shapes the side of the windows, sizes the fraction of the tokens; bars are the range over seeds
    and over the rounds of timing. The line is the front of the settings that were switched on without training; stars
    are those that were trained on with the setting.

    Args:
        rows: Of :func:`depth_rows`.
        networks: Names of the timings, which give the panels.
        out_file: The PNG; its folder is made.

    Returns:
        Its path.

    Raises:
        ValueError: If no setting has both a mean IoU and a time in one of the networks.
    """
    drawn = {
        network: [row for row in rows if network in row.times and (row.switched or row.tuned)] for network in networks
    }
    for network, shown in drawn.items():
        if not shown:
            raise ValueError(
                f'no setting has a mean IoU and a time of {network!r}: run the stages switch and time first'
            )
    colors = dict(zip(DEPTH_METHODS, _COLORS, strict=True))
    figure = Figure(figsize=(6.2 * len(networks), 7.6), dpi=110, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    for axes, (network, shown) in zip(figure.subplots(1, len(networks), squeeze=False)[0], drawn.items(), strict=True):
        for row in shown:
            _draw_row(axes, row, row.times[network], colors[row.setting.method])
        front = _on_front(shown, network)
        points = sorted(
            (row.times[network][0], mean(row.switched.values())) for row in shown if row.setting.name in front
        )
        axes.plot(*zip(*points, strict=True), color='#888888', lw=0.8, zorder=1) if points else None
        axes.set_xlabel(f'{network}, in units of global attention')
        axes.set_ylabel('mean IoU of the 12 blocks at 256x256')
        axes.grid(visible=True, color='#e4e4e4')
        axes.set_axisbelow(True)
    methods = [
        name for name in DEPTH_METHODS if any(row.setting.method == name for one in drawn.values() for row in one)
    ]
    handles = [Line2D([], [], ls='', marker='o', color=colors[name], label=name) for name in methods]
    for side, shape in _SHAPES.items():
        label = 'no windows' if side is None else f'windows of {side}'
        handles.append(Line2D([], [], ls='', marker=shape, color='#999999', label=label))
    for ratio, size in _SIZES.items():
        handles.append(Line2D([], [], ls='', marker='o', ms=size, color='#999999', label=f'{ratio:.0%} of the tokens'))
    handles.append(Line2D([], [], ls='', marker='*', ms=9, color='#999999', label='trained on with it'))
    handles.append(Line2D([], [], color='#888888', lw=0.8, label='front, without training'))
    figure.legend(handles=handles, loc='outside lower center', ncols=4, fontsize=8, frameon=False)
    path = Path(out_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path))
    return path


def _draw_row(axes: Axes, row: DepthRow, time: tuple[float, float, float], color: str) -> None:
    """The marker of a setting switched on, and that of it trained on."""
    median, low, high = time
    shape, size = _SHAPES[row.setting.window], _SIZES[row.setting.keep_ratio]
    for by_seed, marker, points in ((row.switched, shape, size), (row.tuned, '*', size + 4)):
        if scores := list(by_seed.values()):
            average = mean(scores)
            axes.errorbar(
                median,
                average,
                xerr=[[median - low], [high - median]],
                yerr=[[average - min(scores)], [max(scores) - average]],
                fmt=marker,
                ms=points,
                color=color,
                markeredgecolor='white' if marker != '*' else 'black',
                markeredgewidth=0.5,
                elinewidth=0.5,
            )
