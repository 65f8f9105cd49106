"""The options of training on own data, and what training does for them before and after the run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track

from mmitpn.apis.data_layouts import read_own_data, split_off_validation, write_own_data
from mmitpn.apis.own_data import RunOptions, task_of, use_own_data, write_resolved_config
from mmitpn.apis.report import ReportHook
from mmitpn.atomic import write_atomic
from mmitpn.config_types import is_type
from mmitpn.tables import format_table


def add_own_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and the options that belong to it."""
    group = parser.add_argument_group('own data')
    group.add_argument(
        '--data',
        metavar='DIR',
        help='train on the dataset in this folder: COCO, YOLO or Pascal VOC layout, or images with label maps; then'
        ' evaluate on its test or validation set',
    )
    group.add_argument('--classes', nargs='+', metavar='NAME', help='names of the classes, where no file has them')
    group.add_argument('--batch', type=int, metavar='N', help='images per process (default: as the config)')
    group.add_argument('--epochs', type=int, metavar='N', help='length of the run; the schedule is scaled with it')
    group.add_argument(
        '--no-scale-lr', action='store_true', help='keep the learning rate (default: scale it with the batch size)'
    )
    group.add_argument(
        '--val-fraction', type=float, metavar='F', help='fraction held out if no validation set exists (default: 0.15)'
    )
    group.add_argument('--split-seed', type=int, metavar='N', help='seed for the images held out (default: 0)')


def check_own_data_arguments(args: argparse.Namespace) -> None:
    """Raise where an option that belongs to ``--data`` is given without it."""
    values = {
        '--classes': args.classes,
        '--batch': args.batch,
        '--epochs': args.epochs,
        '--no-scale-lr': args.no_scale_lr,
        '--val-fraction': args.val_fraction,
        '--split-seed': args.split_seed is not None,
    }
    given = [name for name, value in values.items() if value]
    if args.data is None and given:
        raise ValueError(f'{given[0]} belongs to --data DIR; for the data of the config set it by --cfg-options')


def apply_own_data(cfg: Config, args: argparse.Namespace) -> list[str]:
    """Change a config to the dataset of ``--data``; what was found is printed.

    Args:
        cfg: The config; changed in place.
        args: The options of :func:`add_own_data_arguments`.

    Returns:
        The changes, for the log of the run.
    """
    data = read_own_data(args.data, task=task_of(cfg), classes=args.classes, progress=show_progress)
    data = split_off_validation(data, fraction=args.val_fraction, seed=args.split_seed or 0)
    data = write_own_data(data, Path(cfg.work_dir, 'data'))
    if is_main_process():
        print(data.describe())
    return use_own_data(cfg, data, RunOptions(args.batch, args.epochs, not args.no_scale_lr))


def resolved_path(cfg: Config) -> Path:
    """Where the resolved config of a run stands."""
    return Path(cfg.work_dir, f'{Path(cfg.filename).stem}.py')


def evaluate(runner: Runner, resolved: Config, report: ReportHook | None) -> None:
    """Evaluate the best checkpoint of a run, or the last, and print its metrics as a table.

    Args:
        runner: The runner after its training.
        resolved: The config as it stands in the work dir, where mmengine has written its own copy meanwhile.
        report: Writes the report of the run again, with what was evaluated; None writes none.
    """
    best = runner.message_hub.get_info('best_ckpt') if 'best_ckpt' in runner.message_hub.runtime_info else None
    if best is not None and not is_type(runner.cfg.get('strategy') or {}, 'FSDPStrategy') and Path(best).is_file():
        runner.load_checkpoint(best)
    else:
        best = None
    metrics = runner.test()
    if not is_main_process():
        return
    path = write_resolved_config(resolved, resolved_path(resolved))
    rows = [(name, f'{value:.4f}' if isinstance(value, float) else value) for name, value in metrics.items()]
    print_log(
        f'{"best checkpoint " + best if best else "weights at the end of the run"}:\n'
        f'{format_table(["metric", "value"], rows)}\nthe complete config of the run: {path}',
        'current',
    )
    content = {'config': str(path), 'checkpoint': best, 'metrics': metrics}
    write_atomic(Path(resolved.work_dir, 'test_metrics.json'), json.dumps(content, indent=2, default=float).encode())
    if report is not None:
        report.checkpoint = best
        report.write(runner, metrics)


def show_progress(items: Sequence[Any], text: str) -> Iterable[Any]:
    """Go through items with a bar and the remaining time, in the first process."""
    console = Console(stderr=True)
    hidden = not is_main_process() or not console.is_terminal
    return track(items, description=text, console=console, transient=True, disable=hidden)
