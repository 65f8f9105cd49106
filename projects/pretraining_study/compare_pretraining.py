"""Does integral pre-training help? Pre-train without labels, fine-tune with few, compare with starting from nothing.

    python projects/pretraining_study/compare_pretraining.py --form mfm lite0 --labels 50 --seeds 0 1 2

The quick start's nano network is pre-trained on 2000 generated images of which no label is read. Then the quick
start's detector is trained on a few labeled images with the same settings and number of iterations: with backbone and
pyramid loaded, with the backbone only (the pyramid starts from random weights), and from random weights. The settings
have a layer decay, meant for pre-trained weights, so random weights are also trained without it. All are evaluated on
400 other images. The scores go to scores.json in this folder; runs that have a score there are not repeated (--again
does), so the comparison can be stopped and resumed at any time. About four minutes per run on two cores. lite0 needs
two packages, see its config.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from rich.console import Console

from mmitpn.datasets import generate_shapes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from training_scores import ScoreFile, evaluate, run_tool, test_set_options

PROJECT = Path(__file__).resolve().parent

CONFIG = 'configs/quickstart/dino_fast-itpn-nano_shapes.py'
UNLABELLED, UNLABELLED_SEED = 2000, 3000
SCRATCH = 'from nothing'
NO_DECAY = 'from nothing, no layer decay'
PARTS = {'pyramid loaded': ('backbone', 'neck'), 'pyramid fresh': ('backbone',)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--form', nargs='+', choices=('mfm', 'lite0'), default=['mfm', 'lite0'])
    parser.add_argument('--labels', type=int, default=50, help='labelled images to fine-tune on (default: 50)')
    parser.add_argument('--iters', type=int, default=460, help='iterations of a fine-tuning run, 8 images each')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--unlabelled', type=Path, default=Path('data/shapes-unlabelled'), help='generated if missing')
    parser.add_argument('--test-set', type=Path, default=Path('data/shapes-test'), help='generated if missing')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/pretraining'))
    parser.add_argument('--out', type=Path, default=PROJECT / 'scores.json', metavar='FILE.json')
    parser.add_argument('--again', action='store_true', help='also repeat runs that have a score')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='of every fine-tuning run')
    return parser.parse_args(argv)


def pretrain(form: str, args: argparse.Namespace) -> Path:
    """Pre-train, or resume a run that was stopped, and return the file of backbone and pyramid."""
    folder = args.work_dir / form
    file = folder / 'pretrained.pth'
    if not file.is_file():
        root = generate_shapes(args.unlabelled.resolve(), UNLABELLED, 1, seed=UNLABELLED_SEED)
        folder_of_config = 'configs/quickstart' if form == 'mfm' else PROJECT / 'configs'
        config = f'{folder_of_config}/pretrain_fast-itpn-nano_shapes-{form}.py'
        options = [f'train_dataloader.dataset.data_root={root}/coco/train2017/', 'randomness.seed=0']
        run_tool('tools/train.py', config, '--resume', '--work-dir', folder, '--cfg-options', *options)
    return file


def start_options(form: str | None, parts: tuple[str, ...], args: argparse.Namespace) -> list[str]:
    """``--cfg-options`` that select the initial weights of a detector."""
    loaded = {part: pretrain(form, args) for part in parts} if form else {}
    return [
        f'model.{part}.init_cfg.checkpoint={loaded[part]}' if part in loaded else f'model.{part}.init_cfg=None'
        for part in ('backbone', 'neck')
    ]


def schedule_options(iters: int) -> list[str]:
    """``--cfg-options`` for the quick start's schedule in another number of iterations."""
    warmup, flat = int(0.03 * iters), int(0.3 * iters)
    return [
        f'train_cfg.max_iters={iters}',
        f'train_cfg.val_interval={iters}',
        f'param_scheduler.0.end={warmup}',
        f'param_scheduler.1.begin={flat}',
        f'param_scheduler.1.end={iters}',
        f'param_scheduler.1.T_max={iters - flat}',
    ]


def score_of(form: str | None, words: str, seed: int, args: argparse.Namespace) -> float:
    """Fine-tune, or resume a run that was stopped, and evaluate."""
    start = start_options(form, PARTS.get(words, ()), args)
    folder = args.work_dir / f'{form or "scratch"}_{words.replace(" ", "-")}_{args.labels}_{args.iters}_{seed}'
    options = [*start, f'train_dataloader.dataset.indices={args.labels}', *schedule_options(args.iters)]
    if words == NO_DECAY:
        options.append('optim_wrapper.paramwise_cfg.decay_rate=1.0')
    options += args.cfg_options
    train = ['tools/quickstart.py', '--task', 'det', '--seed', str(seed), *([] if args.again else ['--resume'])]
    run_tool(*train, '--work-dir', folder, '--cfg-options', *options)
    return evaluate(CONFIG, folder, 'bbox_mAP', test_set_options('det', args.test_set))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.work_dir = args.work_dir.resolve()
    found = ScoreFile(args.out)
    task = f'box AP on shapes, {args.labels} labelled images, {args.iters} iterations'
    runs = [(None, SCRATCH), (None, NO_DECAY), *((form, words) for form in args.form for words in PARTS)]
    for seed in args.seeds:
        for form, words in runs:
            name = f'{form}, {words}' if form else words
            found.fill(task, name, seed, partial(score_of, form, words, seed, args), again=args.again)
    Console(width=130).print(found.table('integral pre-training', SCRATCH))
    return 0


if __name__ == '__main__':
    sys.exit(main())
