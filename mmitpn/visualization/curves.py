"""Loss, metrics and learning rate over the iterations of a training run, from what mmengine writes meanwhile."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .image_grid import save_figure

# The metrics to draw, by the end of the name that mmengine gives them; those of a run without any: its first six.
METRICS = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50', 'PQ', 'mIoU', 'aAcc', 'accuracy/top1', 'accuracy/top5')
LOSSES = ('loss', 'loss_cls', 'loss_bbox', 'loss_iou', 'loss_mask', 'loss_dice')
_NOT_METRICS = {'time', 'data_time', 'step', 'iter', 'epoch', 'memory', 'lr', 'base_lr'}
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class History:
    """What a training run logged: name -> (iteration, value) in order, of training iterations and of validations."""

    train: dict[str, Points]
    metrics: dict[str, Points]


def find_scalars(work_dir: str | Path) -> list[Path]:
    """Find the logs in a work dir, one for each start of the training run, oldest first.

    Raises:
        FileNotFoundError: If the folder or every log is missing.
    """
    root = Path(work_dir)
    if not root.is_dir():
        raise FileNotFoundError(f'no folder {root}; give the work_dir of a training run')
    files = sorted(root.glob('*/vis_data/scalars.json')) or sorted(root.glob('vis_data/scalars.json'))
    if not files:
        raise FileNotFoundError(
            f'no <time>/vis_data/scalars.json under {root}; mmengine writes it once an iteration has been logged'
        )
    return files


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f'no log {path}; give the scalars.json that mmengine writes into vis_data')
    lines = path.read_text(encoding='utf-8').splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            if number == len(lines):  # the run was killed while it wrote
                break
            raise ValueError(f'line {number} of {path} is not JSON ({error.msg}): {line[:80]!r}') from error
        if not isinstance(entry, dict):
            raise ValueError(f'line {number} of {path} is no JSON object but {line[:80]!r}')  # noqa: TRY004 - a file's fault
        entries.append(
            {k: float(v) for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        )
    return entries


def read_history(scalars: str | Path | Sequence[str | Path]) -> History:
    """Read the scalars of a training run, which may have been resumed.

    Metrics that mmengine numbers by epoch are placed at the last logged iteration of that epoch.

    Args:
        scalars: A ``scalars.json``, or several of one run, oldest first; of an iteration the later value counts.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or has no training iteration.
    """
    paths = [Path(path) for path in ([scalars] if isinstance(scalars, str | Path) else scalars)]
    train: dict[str, dict[float, float]] = defaultdict(dict)
    metrics: dict[str, dict[float, float]] = defaultdict(dict)
    for path in paths:
        latest = 0.0
        for entry in _read_lines(path):
            step = entry.get('step', entry.get('iter'))
            if step is None:
                continue
            if 'loss' in entry:
                target, latest = train, step
            else:  # the number of an epoch is smaller than its last iteration
                target, step = metrics, max(step, latest)
            for name, value in entry.items():
                target[name][step] = value
    if 'loss' not in train:
        raise ValueError(
            f'no training iteration in {", ".join(map(str, paths))}; the run stopped before its first log line'
            ' (default_hooks.logger.interval)'
        )
    return History(
        {name: sorted(points.items()) for name, points in train.items()},
        {name: sorted(points.items()) for name, points in metrics.items() if name not in _NOT_METRICS},
    )


def draw_curve(history: History, out_file: str | Path, *, title: str = '') -> Path:
    """Draw the curves as a PNG file of 1000 x 800 pixels; returns its path."""
    return save_figure(plot_history(history, title=title), out_file)


def plot_history(history: History, *, title: str = '') -> Figure:
    """Plot losses, metrics and learning rate below each other; the total loss is black."""
    figure = Figure(figsize=(10, 8), dpi=100, layout='constrained')
    loss, metric, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.4))
    figure.suptitle(title, fontsize=13)
    for index, name in enumerate(name for name in LOSSES if name in history.train):
        style = {'color': f'C{index - 1}', 'linewidth': 1.1} if index else {'color': 'black', 'linewidth': 1.8}
        label = name.removeprefix('loss_') if index else 'total'
        loss.plot(*zip(*history.train[name], strict=True), label=label, **style)
    known = (name for end in METRICS for name in history.metrics if f'/{name}'.endswith((f'/{end}', f'_{end}')))
    chosen = list(dict.fromkeys(known)) or sorted(history.metrics)[:6]
    for name in chosen:
        points = history.metrics[name]
        short = name if name.startswith('accuracy/') else name.rsplit('/', 1)[-1]
        label = f'{short}\nlast {points[-1][1]:.3g}, best {max(value for _, value in points):.3g}'
        metric.plot(*zip(*points, strict=True), linewidth=1.8, marker='o', markersize=3.5, label=label)
    if not chosen:
        metric.text(0.5, 0.5, 'no validation yet', transform=metric.transAxes, ha='center', va='center')
    # With layer decay `lr` is the lowest group's; `base_lr` is the config's.
    rate.plot(
        *zip(*(history.train.get('base_lr') or history.train.get('lr') or [(0, 0)]), strict=True), color='#555555'
    )
    for axes, label in ((loss, 'loss'), (metric, 'metric'), (rate, 'learning rate')):
        _style(axes, label)
    rate.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    rate.set_xlabel('iteration')
    rate.set_xlim(left=0)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    return figure


def _style(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    if axes.dataLim.y0 >= 0:  # a cosine loss is negative
        axes.set_ylim(bottom=0)
    axes.grid(visible=True, color='#e4e4e4', linewidth=0.8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color('#999999')
    axes.tick_params(colors='#555555', labelsize=9)
    if axes.get_legend_handles_labels()[0]:  # beside the axes, where no curve runs under it
        axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, borderaxespad=0)
