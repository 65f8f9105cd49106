"""The report of a training run or a test: one HTML file that needs nothing beside it."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import get_local_path
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmitpn import __version__
from mmitpn.atomic import write_atomic
from mmitpn.config_types import is_type
from mmitpn.utils import evenly_spaced
from mmitpn.visualization.curves import History, find_scalars, plot_history, read_history

from .report_collector import ReportCollector, Sample
from .report_page import FIGURE_STYLE, Section, collapsed, figure_svg, note, number, page, table

REPORT = 'report.html'
POINTS = 500
"""Points of a curve that are drawn."""
PACKAGES = (
    *('torch', 'torchvision', 'onedl-mmengine', 'mmengine', 'onedl-mmcv', 'mmcv', 'mmcv-lite', 'onedl-mmdetection'),
    *('mmdet', 'onedl-mmsegmentation', 'mmsegmentation', 'onedl-mmpretrain', 'mmpretrain', 'numpy', 'pycocotools'),
)


def add_report_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option of training and testing that leaves the report out."""
    parser.add_argument(
        '--report',
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f'write {REPORT} into the work dir: metrics, curves, figures per class, images (default: yes)',
    )


class ReportHook(Hook):
    """Writes ``report.html`` into the work dir when a training run ends, or by :meth:`write` after a test.

    The samples of the evaluation are collected beside the config's metrics: in a training run only those of the
    validation after the last iteration, so that earlier validations take no longer. A run that stops early has none.
    The hook is not in a registry: ``mmitpn train`` and ``mmitpn test`` add it, or ``runner.register_hook``.

    Args:
        checkpoint: What is tested, for the page.
        score_threshold: Lowest score of a detector's predictions that are in the confusion matrix and drawn, 0 to 1.
    """

    priority = 'LOWEST'

    def __init__(self, *, checkpoint: str | None = None, score_threshold: float = 0.3) -> None:
        self.checkpoint = checkpoint
        self.score_threshold = score_threshold
        self.started = time.monotonic()
        self.collector: ReportCollector | None = None
        self._evaluator_cfg: Any = None

    def before_val(self, runner: Runner) -> None:
        """Collect the samples of the last validation."""
        if runner.iter >= runner.max_iters:
            self._collect(runner.val_loop, runner.cfg.get('val_evaluator'))

    def before_test(self, runner: Runner) -> None:
        """Collect the samples of the test."""
        self._collect(runner.test_loop, runner.cfg.get('test_evaluator'))

    def after_train(self, runner: Runner) -> None:
        """Write the report of the training run."""
        self.write(runner)

    def write(self, runner: Runner, metrics: Mapping[str, Any] | None = None) -> Path | None:
        """Write the report, in the main process. What fails in it is logged: the run itself is complete.

        Args:
            runner: The runner of the training run or the test.
            metrics: Of the test.

        Returns:
            The file; None in another process, or where it could not be written.
        """
        if not is_main_process():
            return None
        collector = self.collector
        try:
            path = write_report(
                runner.work_dir,
                cfg=runner.cfg,
                metrics=metrics,
                samples=collector.samples if collector else (),
                classes=((collector and collector.dataset_meta) or {}).get('classes', ()),
                evaluator=self._evaluator_cfg,
                checkpoint=self.checkpoint,
                seconds=time.monotonic() - self.started,
                score_threshold=self.score_threshold,
            )
        except Exception:  # it reads files of any kind, and the run must not end with it
            runner.logger.exception('the report was not written')
            return None
        print_log(f'report: {path}', 'current')
        return path

    def _collect(self, loop: Any, evaluator_cfg: Any) -> None:
        evaluator = loop.evaluator
        iou = _find_metric(evaluator_cfg, 'IoUMetric')
        self.collector = ReportCollector(
            keep_ground_truth=not _find_metric(evaluator_cfg, 'CocoMetric').get('ann_file'),
            ignore_index=iou.get('ignore_index', 255),
        )
        self.collector.dataset_meta = evaluator.dataset_meta
        self._evaluator_cfg = evaluator_cfg
        others = [metric for metric in evaluator.metrics if not isinstance(metric, ReportCollector)]
        evaluator.metrics = [*others, self.collector]


def _find_metric(evaluator_cfg: Any, name: str) -> Mapping[str, Any]:
    """The settings of a metric in the config of an evaluator, which may be a list; empty without it."""
    listed = evaluator_cfg if isinstance(evaluator_cfg, (list, tuple)) else [evaluator_cfg]
    return next((one for one in listed if isinstance(one, Mapping) and is_type(one, name)), {})


def write_report(
    work_dir: str | Path,
    *,
    cfg: Config,
    metrics: Mapping[str, Any] | None = None,
    samples: Sequence[Sample] = (),
    classes: Sequence[str] = (),
    evaluator: Any = None,
    checkpoint: str | None = None,
    seconds: float | None = None,
    score_threshold: float = 0.3,
) -> Path:
    """Write the report of a training run or a test.

    The page has what there is: the metrics, the curves where the work dir has the log of a training run, and what is
    computed from the samples of an evaluation.

    Args:
        work_dir: Its ``report.html`` is written, or replaced.
        cfg: Config of the run.
        metrics: Of a test; None: a training run, whose validations are read from its log.
        samples: What a :class:`ReportCollector` kept of the evaluated images.
        classes: Names of the dataset's classes.
        evaluator: Config of the evaluator: the settings of ``CocoMetric`` name the annotations.
        checkpoint: What was tested.
        seconds: How long it took.
        score_threshold: Of the predictions of a detector that are counted as confused, and drawn; from 0 to 1.

    Returns:
        The file.

    Raises:
        ValueError: If ``score_threshold`` is out of range, or the log of the training run is damaged.
        FileNotFoundError: If the annotations that the evaluator names are not there.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f'score_threshold is {score_threshold}; allowed: 0 to 1')
    history = _read_history(work_dir)
    facts = [
        ('kind', 'training run' if metrics is None else 'test'),
        ('written', f'{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}'),
        *([('time', _duration(seconds))] if seconds is not None else []),
        *([('checkpoint', checkpoint)] if checkpoint else []),
        *([('evaluated', f'{len(samples):,} images, {len(classes):,} classes')] if samples else []),
        ('folder', str(work_dir)),
    ]
    sections = [
        Section('Metrics', _metrics_html(metrics, history)),
        *([Section('Curves', _curves_html(history))] if history else []),
        *_sample_sections(samples, classes, evaluator, score_threshold),
        Section('Config', collapsed(Path(cfg.filename or 'config').name, cfg.pretty_text)),
        Section('Versions', table(('package', 'version'), _versions())),
    ]
    title = Path(cfg.filename).stem if cfg.filename else Path(work_dir).name
    path = Path(work_dir, REPORT)
    write_atomic(path, page(title, facts, sections).encode())
    return path


def _read_history(work_dir: str | Path) -> History | None:
    """The curves of the training run in a work dir; None where nothing was logged."""
    try:
        return read_history(find_scalars(work_dir))
    except FileNotFoundError:
        return None


def _metrics_html(metrics: Mapping[str, Any] | None, history: History | None) -> str:
    if metrics is not None:
        rows = [(name, _value(value)) for name, value in metrics.items()]
        return table(('metric', 'value'), rows) if rows else note('The evaluator of the config has no metric.')
    if history is None or not history.metrics:
        return note('No validation was logged.')
    rows = []
    for name, points in history.metrics.items():
        step, best = max(points, key=lambda point: point[1])
        rows.append((name, _value(points[-1][1]), _value(best), number(int(step)), number(len(points))))
    return table(('metric', 'last validation', 'highest', 'at iteration', 'validations'), rows)


def _value(value: Any) -> str:
    return number(float(value), 4 if abs(value) <= 1 else 2) if isinstance(value, (int, float)) else str(value)


def _curves_html(history: History) -> str:
    thin = History(
        *(
            {name: evenly_spaced(points, POINTS) for name, points in one.items()}
            for one in (history.train, history.metrics)
        )
    )
    with mpl.rc_context(FIGURE_STYLE):
        return figure_svg(plot_history(thin), 'losses, metrics and learning rate over the iterations')


def _sample_sections(
    samples: Sequence[Sample], classes: Sequence[str], evaluator: Any, score_threshold: float
) -> list[Section]:
    """The sections that are computed from samples, by their task."""
    from . import report_figures as figures

    if not samples:
        return []
    settings = _find_metric(evaluator, 'CocoMetric')
    (task, *others) = {one.task for one in samples}
    no_boxes = task == 'detection' and not settings.get('ann_file') and not any('gt' in one.values for one in samples)
    if others or task == 'other' or no_boxes:
        text = 'None: the samples have no ground truth, or the predictions are of a kind that reports do not have.'
        return [Section('Classes', note(text))]
    if task != 'detection':
        sections = {
            'semantic': figures.semantic_sections,
            'panoptic': figures.panoptic_sections,
            'classification': figures.classification_sections,
        }
        return sections[task](samples, classes)
    if settings.get('ann_file'):
        with get_local_path(settings['ann_file'], backend_args=settings.get('backend_args')) as local:
            coco = figures.load_coco(local)
    else:
        coco = figures.coco_of_samples(samples, classes)
    metric = settings.get('metric', 'bbox')
    kinds = [one for one in ([metric] if isinstance(metric, str) else metric) if one in ('bbox', 'segm')] or ['bbox']
    if any(one.values['masks'] is None for one in samples):
        kinds = ['bbox']
    return figures.detection_sections(samples, coco, classes, kinds=kinds, score_threshold=score_threshold)


def _versions() -> list[tuple[str, str]]:
    rows = [('mmitpn', __version__), ('Python', platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    return [*rows, ('CUDA of torch', str(torch.version.cuda)), ('device', device), ('system', platform.platform())]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s' if minutes else f'{seconds} s'
