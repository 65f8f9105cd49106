r"""Does token reduction hold in a network of 12 blocks? Train it once, switch every setting on, tune some, time all.

    python projects/token_reduction_study/depth_study.py --seeds 0 1
    python projects/token_reduction_study/depth_study.py --stage switch plot --method global migration

Stages, in this order:
- train: the segmentor with global attention at 256 pixels (16x16 tokens), 2000 steps for each seed, from the quick
  start's backbone grown to 12 blocks (grow.py). A run that was stopped resumes.
- switch: every setting is switched on in it without training; mean IoU on 400 other images.
- tune: a few settings are trained for 400 further steps under the same recipe, and evaluated.
- time: backbone and pyramid of every setting relative to global attention, in turns: of this network, and of base at
  1024x1024, where the settings have the same proportions.
- plot: a figure of mean IoU over time, and the tables.

Each figure goes to depth_scores.json as soon as it is known, and is not computed again (--again does).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from grow import grow_file
from rich.console import Console
from token_study.depth_report import (
    BASELINE,
    FEWER_MACS,
    HIGHEST,
    LOWEST,
    MEDIAN,
    SWITCHED,
    TUNED,
    depth_markdown,
    depth_rows,
    depth_table,
    draw_depth,
)
from token_study.depth_settings import DEPTH_METHODS, KEEP_RATIOS, WINDOWS, DepthSetting, depth_settings, find_setting
from token_study.sweep import PART, python_path

from mmitpn.benchmark.case import BenchmarkCase
from mmitpn.benchmark.worker import run_job
from mmitpn.datasets import generate_shapes
from mmitpn.engine import find_latest_checkpoint
from mmitpn.engine.cli import parse_options, read_config
from mmitpn.engine.evaluation import build_test_runner, check_evaluation, read_classes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from training_scores import FINISHED, ROOT, ScoreFile, evaluate, run_training

PROJECT = Path(__file__).resolve().parent
CONFIG = 'projects/token_reduction_study/configs/seg_fast-itpn-nano12_shapes-256.py'
TUNE_CONFIG = 'projects/token_reduction_study/configs/seg_fast-itpn-nano12_shapes-256-tune.py'
START = ROOT / 'configs/quickstart/fast-itpn-nano_shapes-seg.pth'
METRIC, UNIT = 'mIoU', 100

# Diameters of generated objects are 12 to 96 pixels in images of any size. Sides of 128 to 256, resized to 256x256,
# make that 12 to 192, so that objects are smaller and larger than windows of 64 and 128 pixels.
SIDES = (128, 256)
TRAIN_IMAGES, HELD_OUT_IMAGES, DATA_SEED = 1200, 200, 6000
TEST_IMAGES, TEST_SEED = 400, 7000


class TimedNetwork(NamedTuple):
    """A network that settings are timed in.

    Attributes:
        arch: Of the backbone.
        depth: Blocks of its main stage.
        size: Side of the image in pixels.
        pyramid: Arguments of the pyramid.
    """

    arch: str | dict[str, Any]
    depth: int
    size: int
    pyramid: dict[str, Any]


# By the name of the timing; the first is the segmentor that is trained here.
NETWORKS = {
    'time of nano12 at 256x256': TimedNetwork(
        {'depths': (1, 1, 12), 'embed_dim': 192, 'num_heads': 3}, 12, 256, {'out_channels': 64, 'num_outs': 3}
    ),
    'time of base at 1024x1024': TimedNetwork('base', 24, 1024, {}),
}

TO_TUNE = (
    'global',
    'windows + 4 global blocks, windows of 4',
    'gathering by query, 4 tokens, windows of 4',
    'gathering by query, 4 tokens + migration, windows of 4, keep 0.5',
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--stage', nargs='+', choices=tuple(STAGES), default=list(STAGES), help='default: all')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument(
        '--method', nargs='+', choices=tuple(DEPTH_METHODS), default=list(DEPTH_METHODS), metavar='METHOD', help='names'
    )
    parser.add_argument(
        '--windows', nargs='+', type=int, choices=WINDOWS, default=list(WINDOWS), help='sides, in tokens'
    )
    parser.add_argument('--keep', nargs='+', type=float, choices=KEEP_RATIOS, default=list(KEEP_RATIOS))
    parser.add_argument(
        '--tune', nargs='+', default=list(TO_TUNE), metavar='SETTING', help='names of settings to train'
    )
    parser.add_argument('--data', type=Path, default=Path('data/shapes-256'), help='generated if missing')
    parser.add_argument('--test-set', type=Path, default=Path('data/shapes-256-test'), help='generated if missing')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/token_depth'))
    parser.add_argument('--out', type=Path, default=PROJECT / 'depth_scores.json', metavar='FILE.json')
    parser.add_argument('--threads', type=int, default=2, help='of the CPU, for timing (default: 2)')
    parser.add_argument('--seconds', type=float, default=20.0, help='time for each group of settings, at least')
    parser.add_argument('--rounds', type=int, default=5, help='runs of each setting, at least (default: 5)')
    parser.add_argument('--together', type=int, default=10, help='settings timed in turns with global attention')
    parser.add_argument('--plot', type=Path, default=ROOT / 'docs/token_depth.png', metavar='OUT.png')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision, as with tools/train.py')
    parser.add_argument('--again', action='store_true', help='also compute what is in the file')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='of every run')
    args = parser.parse_args(argv)
    try:
        args.tune = [find_setting(name) for name in args.tune]
    except ValueError as error:
        parser.error(str(error))
    if min(args.threads, args.rounds, args.together) < 1 or args.seconds <= 0:
        parser.error('--threads, --seconds, --rounds and --together must be positive')
    args.settings = depth_settings(args.method, windows=args.windows, keep_ratios=args.keep)
    args.work_dir = args.work_dir.resolve()
    return args


# --- data and runs ---------------------------------------------------------------------------------------------------


def data_options(args: argparse.Namespace) -> list[str]:
    """``--cfg-options`` of the generated images, which are made if they are missing."""
    data = generate_shapes(args.data.resolve(), TRAIN_IMAGES, HELD_OUT_IMAGES, seed=DATA_SEED, size=SIDES)
    test = generate_shapes(args.test_set.resolve(), 1, TEST_IMAGES, seed=TEST_SEED, size=SIDES)
    roots = {'train': data, 'val': data, 'test': test}
    return [f'{part}_dataloader.dataset.data_root={root}/ade/ADEChallengeData2016/' for part, root in roots.items()]


def trained_checkpoint(args: argparse.Namespace, seed: int) -> Path:
    """The checkpoint of the segmentor with global attention.

    Raises:
        FileNotFoundError: If its training run is not complete.
    """
    folder = args.work_dir / f'global_{seed}'
    checkpoint = find_latest_checkpoint(folder) if (folder / FINISHED).is_file() else None
    if checkpoint is None:
        raise FileNotFoundError(f'{folder} has no complete training run of seed {seed}; run --stage train first')
    return checkpoint


def reduction_options(setting: DepthSetting) -> list[str]:
    """``--cfg-options`` of a setting."""
    return [
        f'model.backbone.{group}.{name}={value}'
        for group, values in setting.backbone().items()
        for name, value in values.items()
    ]


# --- stages ----------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace, _found: ScoreFile) -> None:
    """Train the segmentor with global attention."""
    start = args.work_dir / 'fast-itpn-nano12.pth'
    if not start.is_file():
        grow_file(START, start)
    options = [f'model.backbone.init_cfg.checkpoint={start}', *data_options(args), *args.cfg_options]
    for seed in args.seeds:
        folder = args.work_dir / f'global_{seed}'
        run_training(CONFIG, folder, [*options, f'randomness.seed={seed}'], again=args.again, amp=args.amp)


def switch(args: argparse.Namespace, found: ScoreFile) -> None:
    """Evaluate every setting on the trained segmentor: it is loaded once for each seed."""
    for seed in args.seeds:
        known = found.scores.get(SWITCHED, {})
        todo = [one for one in args.settings if args.again or str(seed) not in known.get(one.name, {})]
        if not todo:
            continue
        evaluate_setting = load_trained(args, seed)
        for number, setting in enumerate(todo, 1):
            print(f'seed {seed}, {number} of {len(todo)}: {setting.name}', flush=True)
            found.fill(SWITCHED, setting.name, seed, partial(evaluate_setting, setting), again=True)


def load_trained(args: argparse.Namespace, seed: int) -> Callable[[DepthSetting], float]:
    """A function that evaluates the trained segmentor of a seed, read once, with the setting that it is given."""
    checkpoint = str(trained_checkpoint(args, seed))
    options = parse_options([*data_options(args), *args.cfg_options])
    folder = args.work_dir / f'switch_{seed}'
    cfg = read_config(
        argparse.Namespace(
            config=str(ROOT / CONFIG), cfg_options=options, work_dir=str(folder), launcher='none', local_rank=0
        )
    )
    trained = (checkpoint, read_classes(checkpoint))
    check_evaluation(cfg, *trained)
    cfg.load_from, cfg.resume = checkpoint, False
    runner, _ = build_test_runner(cfg, *trained)
    runner.call_hook('before_run')
    runner.load_or_resume()

    def evaluate_setting(setting: DepthSetting) -> float:
        runner.model.backbone.set_token_reduction(**setting.backbone())
        return round(float(runner.test_loop.run()[METRIC]) / UNIT, 4)

    return evaluate_setting


def tune(args: argparse.Namespace, found: ScoreFile) -> None:
    """Train settings on from the same checkpoint under the same recipe, and evaluate them."""
    for seed in args.seeds:
        for setting in args.tune:
            found.fill(TUNED, setting.name, seed, partial(tuned_score, setting, seed, args), again=args.again)


def tuned_score(setting: DepthSetting, seed: int, args: argparse.Namespace) -> float:
    """Train a setting on, or resume that, and evaluate it with the setting."""
    folder = args.work_dir / f'tune_{re.sub("[^a-z0-9.]+", "-", setting.name)}_{seed}'
    data = data_options(args)
    options = [*reduction_options(setting), *data, *args.cfg_options]
    load = [f'load_from={trained_checkpoint(args, seed)}', f'randomness.seed={seed}']
    run_training(TUNE_CONFIG, folder, [*load, *options], again=args.again, amp=args.amp)
    return round(evaluate(TUNE_CONFIG, folder, METRIC, options) / UNIT, 4)


def time_settings(args: argparse.Namespace, found: ScoreFile) -> None:
    """Time backbone and pyramid with every setting, a group at a time, each in turns with global attention."""
    for name, network in NETWORKS.items():
        known = found.scores.setdefault(name, {})
        todo = [one for one in args.settings if args.again or one.name not in known]
        if not todo:
            continue
        others = [one for one in todo if one.name != BASELINE]
        groups = [others[i : i + args.together] for i in range(0, len(others), args.together)] or [[]]
        for number, group in enumerate(groups, 1):
            print(f'{name}, group {number} of {len(groups)}: {", ".join(one.name for one in group)}', flush=True)
            known.update(relative_times(network, [DepthSetting(BASELINE), *group], args))
            found.save()


def relative_times(
    network: TimedNetwork, settings: Sequence[DepthSetting], args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Times and multiply-adds of settings in units of those of the first, measured in turns.

    Returns:
        For the name of each setting the median, the lowest and the highest time over the rounds, each relative to the
        first setting in the same round, the relative multiply-adds, the median in milliseconds, and the rounds.
    """
    side, image = network.size // 16, {'img_size': network.size}
    cases = [
        BenchmarkCase(
            PART,
            (network.size, network.size),
            arch=network.arch,
            backbone={**image, **setting.backbone(depth=network.depth, side=side)},
        )
        for setting in settings
    ]
    result = run_job(
        'turns',
        cases,
        module='token_study.turns',
        environment={'PYTHONPATH': python_path()},
        threads=args.threads,
        seconds=args.seconds,
        min_rounds=args.rounds,
        pyramid=network.pyramid,
    )
    base, times = result['cases'][0], {}
    for setting, timed in zip(settings, result['cases'], strict=True):
        ratios = [this / first for this, first in zip(timed['seconds'], base['seconds'], strict=True)]
        figures = {MEDIAN: median(ratios), LOWEST: min(ratios), HIGHEST: max(ratios)}
        figures |= {FEWER_MACS: timed['macs'] / base['macs'], 'ms': 1e3 * median(timed['seconds'])}
        times[setting.name] = {**{name: round(value, 4) for name, value in figures.items()}, 'rounds': len(ratios)}
    return times


def plot(args: argparse.Namespace, found: ScoreFile) -> None:
    """Print the tables, and draw mean IoU over time."""
    rows = depth_rows(found.scores, list(NETWORKS))
    Console(width=None if sys.stdout.isatty() else 180).print(depth_table(rows, list(NETWORKS)))
    print(depth_markdown(rows, list(NETWORKS)))
    print(f'written: {draw_depth(rows, list(NETWORKS), args.plot)}')


STAGES: dict[str, Callable[[argparse.Namespace, ScoreFile], Any]] = {
    'train': train,
    'switch': switch,
    'tune': tune,
    'time': time_settings,
    'plot': plot,
}


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    found = ScoreFile(args.out)
    try:
        for name, stage in STAGES.items():
            if name in args.stage:
                stage(args, found)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
