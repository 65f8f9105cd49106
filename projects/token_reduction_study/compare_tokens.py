"""Does token reduction keep the accuracy? Train small models with each method and seed, and compare.

    python projects/token_reduction_study/compare_tokens.py --task det seg --method global gathering --seeds 0 1 2
    python projects/token_reduction_study/compare_tokens.py --task photos --photos PHOTOS/ --seeds 0

det and seg are the quick start's detector and segmentor on generated shapes, evaluated on 400 other images (--test-set,
made where it is missing: with the quick start's own 100 the choice of images moves single scores by a point). photos
is its detector on a handful of photographs in COCO's layout, trained until it overfits them. Five to ten minutes per
run on two cores. The scores go to scores.json in this folder, which benchmark_tokens.py draws; runs that have a score
there are not repeated (--again does), so the comparison can be stopped and resumed at any time.

Images of 128 pixels are 8x8 tokens, so the windows are 4x4 and have one gathering token: 16 tokens for each, where a
window of 16x16 with four has 64. Photographs of 320 pixels are 20x20 tokens, in windows of 10x10 with two: 50 for each.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from token_study.methods import METHODS, OWN_METHODS, backbone_settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from training_scores import ROOT, ScoreFile, evaluate, run_tool, test_set_options

PROJECT = Path(__file__).resolve().parent


class Task(NamedTuple):
    """What is trained, and how it is scored.

    Attributes:
        config: The config.
        metric: Name of the score in the metrics, without what stands before a slash.
        label: What a table and a plot call it.
        unit: What 1 is written as.
        windows: Settings of token gathering that fit its images.
    """

    config: str
    metric: str
    label: str
    unit: float
    windows: dict[str, int]


FINE = {'window_size': 4, 'num_tokens': 1}
COARSE = {'window_size': 10, 'num_tokens': 2}
QUICKSTART = 'configs/quickstart'
TASKS = {
    'det': Task(f'{QUICKSTART}/dino_fast-itpn-nano_shapes.py', 'bbox_mAP', 'box AP on shapes', 1, FINE),
    'seg': Task(f'{QUICKSTART}/upernet_fast-itpn-nano_shapes.py', 'mIoU', 'mean IoU on shapes', 100, FINE),
    'photos': Task(
        f'{QUICKSTART}/dino_fast-itpn-nano_photos.py', 'bbox_mAP', 'box AP on the photographs trained on', 1, COARSE
    ),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', nargs='+', choices=tuple(TASKS), default=['det', 'seg'])
    parser.add_argument('--method', nargs='+', choices=tuple(METHODS), default=list(OWN_METHODS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--keep', type=float, default=0.5, help='fraction of the tokens that stay (default: 0.5)')
    parser.add_argument('--test-set', type=Path, default=Path('data/shapes-test'), help='of det and seg')
    parser.add_argument(
        '--photos', type=Path, default=Path('data/coco'), metavar='DIR', help='folder of the task photos'
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/tokens'), help='default: work_dirs/tokens')
    parser.add_argument('--out', type=Path, default=PROJECT / 'scores.json', metavar='FILE.json')
    parser.add_argument('--again', action='store_true', help='train also what has a score already')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='more settings of every run')
    return parser.parse_args(argv)


def options_of(task: Task, method: str, keep: float) -> list[str]:
    """``--cfg-options`` of a method."""
    settings = backbone_settings(method, keep_ratio=keep, **task.windows)
    return [
        f'model.backbone.{group}.{name}={value}' for group, values in settings.items() for name, value in values.items()
    ]


def config_of(task: Task, method: str, folder: Path) -> str:
    """The task's config, or for a method of others one in ``folder`` that has it as base and imports this study."""
    if method in OWN_METHODS:
        return task.config
    path = folder / 'config' / Path(task.config).name  # the run writes its own copy to the folder itself
    path.parent.mkdir(parents=True, exist_ok=True)
    imports = "custom_imports = dict(imports=['token_study'], allow_failed_imports=False)"
    path.write_text(f'_base_ = {str(ROOT / task.config)!r}\n{imports}\n', encoding='utf-8')
    return str(path)


def data_options(name: str, args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Where the data are, as ``--cfg-options`` of training and of evaluation."""
    if name != 'photos':
        return [], test_set_options(name, args.test_set)
    root = args.photos.resolve()
    ground_truth = f'{root}/annotations/instances_train2017.json'
    options = [f'{part}_dataloader.dataset.data_root={root}/' for part in ('train', 'val', 'test')]
    options += [f'{part}_evaluator.ann_file={ground_truth}' for part in ('val', 'test')]
    return options, options


def score_of(name: str, method: str, seed: int, args: argparse.Namespace) -> float:
    """Train, or resume a run that was stopped, and evaluate."""
    task, folder = TASKS[name], args.work_dir / f'{name}_{method}_{seed}'
    config = config_of(task, method, folder)
    options = [*options_of(task, method, args.keep), *args.cfg_options]
    train_options, test_options = data_options(name, args)
    resume = [] if args.again else ['--resume']
    if name == 'photos':
        train = ['tools/train.py', config, *resume]
        train_options = [*train_options, f'randomness.seed={seed}']
    else:
        train = ['tools/quickstart.py', '--task', name, '--config', config, '--seed', str(seed), *resume]
    settings = [*options, *train_options]
    run_tool(*train, '--work-dir', folder, *(['--cfg-options', *settings] if settings else []))
    return evaluate(config, folder, task.metric, [*options, *test_options]) / task.unit


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.work_dir = args.work_dir.resolve()
    found = ScoreFile(args.out)
    for seed in args.seeds:
        for name in args.task:
            for method in args.method:
                score = partial(score_of, name, method, seed, args)
                found.fill(TASKS[name].label, method, seed, score, again=args.again)
    Console(width=110).print(found.table(f'keep {args.keep}', 'global'))
    return 0


if __name__ == '__main__':
    sys.exit(main())
