"""The training curve: loss, learning rate and metric over iterations, from what mmengine writes while it trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Metrics worth a line, in the order of the legend, by the end of the name mmengine gives them.
METRICS = (
    'bbox_mAP',
    'bbox_mAP_50',
    'segm_mAP',
    'segm_mAP_50',
    'PQ',
    'mIoU',
    'aAcc',
    'accuracy/top1',
    'accuracy/top5',
)
LOSSES = ('loss', 'loss_cls', 'loss_bbox', 'loss_iou', 'loss_mask', 'loss_dice')
_NOT_METRICS = {'time', 'data_time', 'step', 'iter', 'epoch', 'memory', 'lr', 'base_lr'}
_GREY = '#555555'


@dataclass
class History:
    """What a training wrote.

    Attributes:
        train: Name -> list of (iteration, value).
        metrics: Name -> list of (iteration, value).
        source: The files it came from.
    """

    train: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    metrics: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    source: tuple[Path, ...] = ()


def find_scalars(work_dir: str | Path) -> list[Path]:
    """Find the logs of a work folder, one for each start of the training, oldest first.

    Args:
        work_dir: The folder a training was given.

    Raises:
        FileNotFoundError: If the folder or every log is missing.
    """
    root = Path(work_dir)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder {root}; give the work_dir of a training')
    files = sorted(root.glob('*/vis_data/scalars.json')) or sorted(root.glob('vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(
            f'no <time>/vis_data/scalars.json under {root}; mmengine writes it once a training has logged an iteration'
        )
    return files


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f'no log {path}; give the scalars.json that mmengine writes into vis_data')
    lines = path.read_text(encoding='utf-8').splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # a run that was killed while it wrote
                break
            raise ValueError(f'line {number} of {path} is not JSON ({error.msg}): {line[:80]!r}') from error
        if not isinstance(entry, dict):
            raise ValueError(f'line {number} of {path} is no JSON object but {line[:80]!r}')  # noqa: TRY004 - a file's fault
        entries.append(entry)
    return entries


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_history(scalars: str | Path | Sequence[str | Path]) -> History:
    """Read the scalars of a training, resumed ones included.

    Metrics that mmengine numbers by epoch are placed at the last logged iteration of that epoch.

    Args:
        scalars: A ``scalars.json``, or several of one training, oldest first; what a later one says about an iteration
            replaces the earlier.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or nothing in them is a training iteration.
    """
    paths = [Path(scalars)] if isinstance(scalars, str | Path) else [Path(path) for path in scalars]
    train: dict[str, dict[float, float]] = {}
    metrics: dict[str, dict[float, float]] = {}
    for path in paths:
        latest = 0.0
        for entry in _read_lines(path):
            step = entry.get('step', entry.get('iter'))
            if not _number(step):
                continue
            if 'loss' in entry:
                target, latest = train, float(step)
            else:
                # An epoch's number is smaller than the iteration it ends at; an iteration is not.
                target, step = metrics, max(float(step), latest)
            for name, value in entry.items():
                if _number(value):
                    target.setdefault(name, {})[float(step)] = float(value)
    if 'loss' not in train:
        raise ValueError(
            f'no training iteration in {", ".join(map(str, paths))}; the training stopped before its first log line'
            ' (default_hooks.logger.interval)'
        )
    return History(
        train={name: sorted(points.items()) for name, points in train.items()},
        metrics={name: sorted(points.items()) for name, points in metrics.items() if name not in _NOT_METRICS},
        source=tuple(paths),
    )


def _chosen_metrics(history: History) -> list[str]:
    """The metrics to draw: the known ones in their order, or else whatever there is (six at most)."""
    known = [
        name
        for wanted in METRICS
        for name in history.metrics
        if name == wanted or name.endswith((f'/{wanted}', f'_{wanted}'))
    ]
    return list(dict.fromkeys(known)) or sorted(history.metrics)[:6]


def _tidy(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(visible=True, color='#e4e4e4', linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    for side in ('left', 'bottom'):
        axes.spines[side].set_color('#999999')
    axes.tick_params(colors=_GREY, labelsize=9)


def _legend(axes: Axes) -> None:
    # Beside the axes: no curve can run under it.
    axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, borderaxespad=0)


def _draw_loss(axes: Axes, history: History) -> None:
    for index, name in enumerate(name for name in LOSSES if name in history.train):
        points = history.train[name]
        total = name == 'loss'
        axes.plot(
            *zip(*points, strict=True),
            color='black' if total else f'C{index - 1}',
            linewidth=1.8 if total else 1.1,
            label='total' if total else name.removeprefix('loss_'),
        )
    _tidy(axes, 'loss')
    axes.set_ylim(bottom=0)
    _legend(axes)


def _draw_metrics(axes: Axes, history: History) -> None:
    names = _chosen_metrics(history)
    for index, name in enumerate(names):
        points = history.metrics[name]
        short = name.rsplit('/', 1)[-1] if not name.startswith('accuracy/') else name
        axes.plot(
            *zip(*points, strict=True),
            color=f'C{index}',
            linewidth=1.8,
            marker='o',
            markersize=3.5,
            label=f'{short}\nlast {points[-1][1]:.3g}, best {max(value for _, value in points):.3g}',
        )
    _tidy(axes, 'metric')
    axes.set_ylim(bottom=0)
    if names:
        _legend(axes)
    else:
        axes.text(0.5, 0.5, 'no validation yet', transform=axes.transAxes, ha='center', va='center', color=_GREY)


def draw_curve(history: History, out_file: str | Path, *, title: str = '') -> Path:
    """Draw the training curve as a PNG of about 1000 x 800 pixels.

    Args:
        history: What :func:`read_history` gave.
        out_file: Where to write it; folders are made.
        title: One line above it.

    Returns:
        The path written.
    """
    figure = Figure(figsize=(10, 8), dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.4))
    if title:
        figure.suptitle(title, fontsize=13)
    _draw_loss(top, history)
    _draw_metrics(middle, history)
    # With layer decay `lr` is the first group's, the lowest; `base_lr` is what the config says.
    rates = history.train.get('base_lr') or history.train.get('lr', [])
    if rates:
        bottom.plot(*zip(*rates, strict=True), color=_GREY, linewidth=1.5)
    _tidy(bottom, 'learning rate')
    bottom.set_ylim(bottom=0)
    bottom.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    bottom.set_xlabel('iteration')
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.set_xlim(left=0)
    figure.align_ylabels()
    path = Path(out_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='png')
    return path
