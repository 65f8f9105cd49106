"""Does integral pre-training help? Pre-train, probe the frozen features, fine-tune on 50 labeled images, compare.

    python projects/pretraining_study/compare_pretraining.py --seeds 0 1 2
    python projects/pretraining_study/compare_pretraining.py --task probe --row fast pixel --split tuning --seeds 0

The protocol is in this folder's README. Scores go to scores.json after each run; what has a score is not run again, and
a training run that was stopped is resumed, so the comparison can be stopped at any time. --split tuning is for choices,
report for the figures that are reported. The rows of ``fast`` need two packages, see its config. Pre-training can run
on another machine, with a GPU: with --pretrain-only there, and its files pretrained.pth in the --work-dir here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from matplotlib.figure import Figure
from rich.console import Console

from mmitpn.atomic import write_atomic
from mmitpn.datasets import generate_shapes
from mmitpn.engine import find_latest_checkpoint
from mmitpn.visualization.image_grid import save_figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from probe import probe, read_split
from training_scores import ScoreFile, Scores, evaluate, run_tool, run_training

PROJECT = Path(__file__).resolve().parent
CONFIGS = PROJECT / 'configs'
# name -> config
PRETRAINING = {
    'mfm': Path('configs/quickstart/pretrain_fast-itpn-nano_shapes-mfm.py'),
    'fast': CONFIGS / 'pretrain_fast-itpn-nano_shapes-fast.py',
    'pixel': CONFIGS / 'pretrain_fast-itpn-nano_shapes-pixel.py',
    'supervised': CONFIGS / 'upernet_fast-itpn-nano_shapes-supervised.py',
}
RANDOM = 'random'
BOTH = ('backbone', 'neck')
# name of a row -> what it starts from, and the parts that are loaded
ROWS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    RANDOM: (None, ()),
    'mfm, random pyramid': ('mfm', ('backbone',)),
    'mfm': ('mfm', BOTH),
    'fast, random pyramid': ('fast', ('backbone',)),
    'fast': ('fast', BOTH),
    'pixel': ('pixel', BOTH),
    'supervised': ('supervised', BOTH),
}
REPORTED = [name for name in ROWS if name != 'pixel']
# split -> folder of the dataset
SPLITS = {'tuning': 'unlabeled', 'report': 'report'}
DATASETS = {'unlabeled': (8000, 200, 3000), 'labeled': (400, 100, 0), 'report': (1, 400, 5000)}  # images, images, seed
ADE = 'ade/ADEChallengeData2016'


class Task(NamedTuple):
    """A measure: what a table calls it, and how it is fine-tuned (the probe is not).

    Attributes:
        label: Its name in scores.json.
        config: The config; None for the probe.
        metric: Name of the score, without what stands before a slash.
        unit: What 1 is written as.
    """

    label: str
    config: Path | None = None
    metric: str = ''
    unit: float = 1


TASKS = {
    'probe': Task('probe, mean IoU'),
    'segmentation': Task('UperNet, 50 images, mean IoU', CONFIGS / 'upernet_fast-itpn-nano_shapes-50.py', 'mIoU', 100),
    'detection': Task('RetinaNet, 50 images, box AP', CONFIGS / 'retinanet_fast-itpn-nano_shapes-50.py', 'bbox_mAP'),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--row', nargs='+', choices=tuple(ROWS), default=REPORTED)
    parser.add_argument('--task', nargs='+', choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--split', choices=tuple(SPLITS), default='report', help='images that are scored')
    parser.add_argument('--data', type=Path, default=Path('data/pretraining-study'), help='generated if missing')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/pretraining'))
    parser.add_argument('--out', type=Path, default=PROJECT / 'scores.json', metavar='FILE.json')
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='also draw the scores of the split')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision, as with tools/train.py')
    parser.add_argument('--again', action='store_true', help='also repeat runs that have a score')
    parser.add_argument('--steps', type=int, default=4800, help='of every pre-training')
    parser.add_argument('--pretrain-only', action='store_true', help='end with the pre-trained weights of the rows')
    parser.add_argument('--pretrain-options', nargs='+', default=[], metavar='KEY=VALUE', help='of every pre-training')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='of every fine-tuning')
    return parser.parse_args(argv)


def dataset(name: str, args: argparse.Namespace) -> Path:
    """A dataset of the protocol, generated if it is missing."""
    num_train, num_val, seed = DATASETS[name]
    return generate_shapes(args.data / name, num_train, num_val, seed=seed)


def pretrain(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Pre-train, or resume a run that was stopped, and return the file of backbone and pyramid."""
    folder = args.work_dir / f'pretrain_{name}_{seed}'
    file = folder / 'pretrained.pth'
    check_settings(folder, args)
    if not file.is_file():
        images = f'{ADE}/' if name == 'supervised' else 'coco/train2017/'
        root = f'{dataset("unlabeled", args)}/{images}'
        options = [f'train_dataloader.dataset.data_root={root}', f'randomness.seed={seed}']
        options += [*schedule_options(args.steps), *args.pretrain_options]
        if name == 'supervised':
            options += scored_images('val', TASKS['segmentation'], 'tuning', args)
        flags = ('--resume', '--no-report', *(['--amp'] if args.amp else []))
        run_tool('tools/train.py', PRETRAINING[name], *flags, '--work-dir', folder, '--cfg-options', *options)
        if name == 'supervised':
            checkpoint = find_latest_checkpoint(folder)
            run_tool('tools/convert/convert_checkpoint.py', checkpoint, file, '--drop-heads')
    return file


def check_settings(folder: Path, args: argparse.Namespace) -> None:
    """Keep the settings of a pre-training run in its folder, and refuse to take it for a run with others.

    Raises:
        ValueError: If the folder has a run of other settings. One without the file, from another machine, is taken.
    """
    file, settings = folder / 'settings.json', {'steps': args.steps, 'options': sorted(args.pretrain_options)}
    if file.is_file():
        if (found := json.loads(file.read_text())) != settings:
            raise ValueError(f'{folder} has a run with {found}, and this one has {settings}: give another --work-dir')
    elif not (folder / 'pretrained.pth').is_file():
        write_atomic(file, json.dumps(settings).encode())


def schedule_options(steps: int) -> list[str]:
    """``--cfg-options`` for a number of steps, in the first twentieth of which the learning rate rises."""
    warmup = steps // 20
    return [
        f'train_cfg.max_iters={steps}',
        f'param_scheduler.0.end={warmup}',
        f'param_scheduler.1.begin={warmup}',
        f'param_scheduler.1.end={steps}',
        f'param_scheduler.1.T_max={steps - warmup}',
        f'default_hooks.checkpoint.interval={steps // 4}',
    ]


def start_options(row: str, seed: int, args: argparse.Namespace) -> list[str]:
    """``--cfg-options`` that select the initial weights of a model."""
    source, parts = ROWS[row]
    file = pretrain(source, seed, args) if source else None
    return [
        f'model.{part}.init_cfg.checkpoint={file}' if part in parts else f'model.{part}.init_cfg=None' for part in BOTH
    ]


def finetune(task: Task, row: str, seed: int, args: argparse.Namespace) -> float:
    """Fine-tune, or resume a run that was stopped, and return the score on the split."""
    folder = args.work_dir / f'{task.metric}_{row.replace(", ", "_").replace(" ", "-")}_{seed}'
    options = [
        *start_options(row, seed, args),
        f'randomness.seed={seed}',
        f'train_dataloader.dataset.data_root={dataset("labeled", args)}/{layout_of(task)}',
        *scored_images('val', task, 'tuning', args),
        *args.cfg_options,
    ]
    run_training(task.config, folder, options, again=args.again, amp=args.amp)
    score = evaluate(task.config, folder, task.metric, scored_images('test', task, args.split, args))
    return round(score / task.unit, 4)


def layout_of(task: Task) -> str:
    """The folder of a dataset that a task reads."""
    return 'coco/' if task.metric == 'bbox_mAP' else f'{ADE}/'


def scored_images(part: str, task: Task, split: str, args: argparse.Namespace) -> list[str]:
    """``--cfg-options`` of the images of a split, for ``'val'`` or ``'test'``."""
    root = dataset(SPLITS[split], args)
    options = [f'{part}_dataloader.dataset.data_root={root}/{layout_of(task)}']
    if task.metric == 'bbox_mAP':
        options.append(f'{part}_evaluator.ann_file={root}/coco/annotations/instances_val2017.json')
    return options


@cache
def _read(root: Path, split: str) -> tuple:
    return read_split(root / ADE, split)


def probe_row(row: str, seed: int, args: argparse.Namespace) -> float:
    """Mean IoU of the probe on the split."""
    source, parts = ROWS[row]
    if source and parts != BOTH:
        raise ValueError(f'the row {row!r} has a random pyramid; the probe needs the pyramid of its pre-training')
    file = str(pretrain(source, seed, args)) if source else None
    train, test = _read(dataset('labeled', args), 'training'), _read(dataset(SPLITS[args.split], args), 'validation')
    return round(probe(file, train, test, seed=seed).mean_iou, 4)


def label_of(task: Task, split: str) -> str:
    """The name of a task's scores on a split."""
    return task.label if split == 'report' else f'{task.label} ({split})'


def draw_scores(scores: Scores, split: str, out_file: Path) -> Path:
    """Draw every seed's score and the means, a panel for each task and a line for each row.

    Args:
        scores: Task -> row -> seed -> score.
        split: Whose scores are drawn.
        out_file: The PNG.

    Raises:
        ValueError: If there is no score of this split.
    """
    panels = {label: scores[label] for task in TASKS.values() if (label := label_of(task, split)) in scores}
    if not panels:
        raise ValueError(f'there are no scores of the split {split!r} yet: run without --plot first')
    figure = Figure(figsize=(4.6 * len(panels) + 1, 3.4), dpi=110, layout='constrained')
    for axes, (label, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        names = [name for name in ROWS if rows.get(name)][::-1]
        for height, name in enumerate(names):
            values = [100 * value for value in rows[name].values()]
            color = {RANDOM: '#888888', 'supervised': '#d08000'}.get(name, '#1060a0')
            axes.plot([min(values), max(values)], [height, height], color=color, linewidth=2, alpha=0.5)
            axes.plot(values, [height] * len(values), 'o', color=color, markersize=5)
            axes.annotate(f'{mean(values):.1f}', (max(values), height), (6, -3), textcoords='offset points', fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(f'{label}, percent')
        axes.margins(x=0.18, y=0.12)
        axes.grid(visible=True, axis='x', color='#e4e4e4')
        axes.set_axisbelow(True)
    return save_figure(figure, out_file)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.work_dir, args.data = args.work_dir.resolve(), args.data.resolve()
    if args.pretrain_only:
        for source, seed in product(dict.fromkeys(ROWS[row][0] for row in args.row), args.seeds):
            if source:
                print(pretrain(source, seed, args))
        return 0
    found = ScoreFile(args.out)
    for seed in args.seeds:
        for name in args.task:
            task = TASKS[name]
            for row in args.row:
                source, parts = ROWS[row]
                if task.config is None and source and parts != BOTH:
                    continue
                score: Callable[[], float] = (
                    partial(probe_row, row, seed, args)
                    if task.config is None
                    else partial(finetune, task, row, seed, args)
                )
                found.fill(label_of(task, args.split), row, seed, score, again=args.again)
    Console(width=130).print(found.table('integral pre-training', RANDOM))
    if args.plot:
        print(f'written: {draw_scores(found.scores, args.split, args.plot)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
