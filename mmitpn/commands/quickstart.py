"""Train and evaluate a small model with a Fast-iTPN backbone and pyramid on generated images, and draw its predictions.

    mmitpn quickstart                  # a DINO detector; bash tools/quickstart.sh sets the environment up first
    mmitpn quickstart --task seg       # a UperNet segmentor
    mmitpn quickstart --task instance  # MaskDINO; also panoptic, semantic
    mmitpn quickstart --seed 1 --work-dir work_dirs/quickstart_1

Everything happens on the CPU; progress and remaining time are logged every 50 iterations,
and --resume continues an interrupted run. In the work dir afterwards: the checkpoint, metrics.json,
training_curve.png and predictions.png (predictions next to the ground truth on held-out images).
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from rich.console import Console

import mmitpn
from mmitpn.config_check import check_config
from mmitpn.datasets import generate_shapes
from mmitpn.engine import find_latest_checkpoint, use_atomic_checkpoints
from mmitpn.engine.cli import DictAction, FirstStepHook, build_runner, read_config, run_command
from mmitpn.utils import config_folder
from mmitpn.visualization import (
    draw_curve,
    draw_label_maps,
    draw_predictions,
    draw_segments,
    find_scalars,
    read_history,
)

CONFIGS = config_folder() / 'quickstart'


class Task(NamedTuple):
    """What is trained, and how it is scored.

    Attributes:
        config: The config.
        metric: Name of the score.
        words: What the score is called.
        unit: What 1 is written as.
        output: Setting of the metric that keeps the predictions.
        follow: Whose advice on what to do next it has, a key of ``NEXT``.
    """

    config: Path
    metric: str
    words: str
    unit: int
    output: str
    follow: str


MASK_DINO = 'mask-dino_fast-itpn-nano_shapes'
TASKS = {
    'det': Task(CONFIGS / 'dino_fast-itpn-nano_shapes.py', 'bbox_mAP', 'COCO box AP', 1, 'outfile_prefix', 'det'),
    'seg': Task(CONFIGS / 'upernet_fast-itpn-nano_shapes.py', 'mIoU', 'mean IoU', 100, 'output_dir', 'seg'),
    'instance': Task(CONFIGS / f'{MASK_DINO}-instance.py', 'segm_mAP', 'COCO mask AP', 1, 'outfile_prefix', 'instance'),
    'panoptic': Task(CONFIGS / f'{MASK_DINO}-panoptic.py', 'PQ', 'panoptic quality', 100, 'output_dir', 'panoptic'),
    'semantic': Task(CONFIGS / f'{MASK_DINO}-semantic.py', 'mIoU', 'mean IoU', 100, 'output_dir', 'seg'),
}
# Task -> the dataset of its full-size config, that config with options, and what --data reads for it.
NEXT = {
    'det': (
        'COCO',
        'dino-4scale_fast-itpn-t_8xb2-12e_coco --pretrained fast-itpn-t',
        'boxes in COCO, YOLO or VOC layout',
    ),
    'instance': (
        'COCO',
        'mask-dino_fast-itpn-t_8xb2-12e_coco-instance --pretrained fast-itpn-t --amp',
        'polygons in COCO, YOLO or VOC layout',
    ),
    'panoptic': ('COCO', 'mask-dino_fast-itpn-t_8xb2-50e_coco-panoptic --pretrained fast-itpn-t --amp', None),
    'seg': ('ADE20K', 'upernet_fast-itpn-t_8xb2-160k_ade20k-512x512 --pretrained fast-itpn-t', 'images and label maps'),
}


def next_steps(follow: str, config: str | Path, checkpoint: Path) -> str:
    """What to do after the quick start."""
    dataset, command, own = NEXT[follow]
    lines = [('Predict with it', f'mmitpn predict IMAGES --model {config} --weights {checkpoint}')]
    if own is not None:
        lines.append((f'Your own data ({own})', f'mmitpn train {config} --data MY_DATA --pretrained {checkpoint}'))
    lines.append((f'{dataset} (needs the dataset and GPUs; a reconstruction)', f'mmitpn train {command}'))
    lines.append(('Fast-iTPN in a detector or segmentor you have', 'mmitpn swap CONFIG -o OUT.py'))
    return '\n'.join(f'  {index}. {text}:\n     {line}' for index, (text, line) in enumerate(lines, 1))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=tuple(TASKS), default='det', help='default: det')
    parser.add_argument('--config', help="default: the task's in configs/quickstart")
    parser.add_argument('--seed', type=int, default=0, help='seed of the training run, not of the images')
    parser.add_argument('--work-dir', help='default: work_dirs/quickstart, or work_dirs/quickstart_TASK')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    parser.add_argument('--resume', action='store_true', help='resume from the last checkpoint in the work dir')
    parser.add_argument('--num-train', type=int, default=400, help='images to generate (default: 400)')
    parser.add_argument('--num-val', type=int, default=100, help='held-out images to generate (default: 100)')
    parser.add_argument('--debug', action='store_true', help='show where an error was raised')
    parser.set_defaults(launcher='none', local_rank=0)
    args = parser.parse_args(argv)
    args.config = args.config or str(TASKS[args.task].config)
    args.work_dir = args.work_dir or f'work_dirs/quickstart{"" if args.task == "det" else f"_{args.task}"}'
    return args


def prepare_data(cfg: Config, args: argparse.Namespace) -> None:
    """Make the generated set unless it is there and complete."""
    root = Path(cfg.train_dataloader.dataset.data_root)
    root = root.parents[1] if root.parent.name == 'ade' else root.parent  # shapes/ade/ADEChallengeData2016, shapes/coco
    print(f'[quickstart] 1/4 the generated images: {args.num_train} to train on, {args.num_val} held out, in {root}')
    generate_shapes(root, num_train=args.num_train, num_val=args.num_val)


def prepare_run(cfg: Config, args: argparse.Namespace) -> None:
    """Settings of the run that the command line decides."""
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': args.seed}
    cfg.test_evaluator[TASKS[args.task].output] = str(Path(cfg.work_dir) / 'predictions')
    use_atomic_checkpoints(cfg)
    found = find_latest_checkpoint(cfg.work_dir)
    if args.resume and found is not None:
        cfg.resume, cfg.load_from = True, str(found)
        return
    # What an earlier run left must not be taken for this one's, should this one be killed before its first checkpoint.
    for path in Path(cfg.work_dir).glob('iter_*.pth'):
        print(f'[quickstart] removing {path} of an earlier run (--resume would resume that run)')
        path.unlink()


def save_checkpoint(work_dir: Path, name: str) -> Path:
    """Copy the last checkpoint to a name that does not change with the number of iterations."""
    last = find_latest_checkpoint(work_dir)
    if last is None:
        raise FileNotFoundError(
            f'the training run left no checkpoint in {work_dir}; is default_hooks.checkpoint switched off?'
        )
    target, unfinished = work_dir / name, work_dir / f'{name}.unfinished'
    shutil.copyfile(last, unfinished)
    unfinished.replace(target)
    return target


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    names = ('torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmseg')
    found = {name: str(import_module(name).__version__) for name in names}
    return {'python': platform.python_version(), 'mmitpn': mmitpn.__version__, **found}


def write_metrics(path: Path, metrics: dict[str, Any], **facts: Any) -> None:
    """Write the metric under its plain names (bbox_mAP, ...), with what a reader needs to know about the run."""
    plain = {name.rsplit('/', 1)[-1]: value for name, value in metrics.items()}
    text = json.dumps({**plain, **facts, 'versions': versions()}, indent=2, default=float)  # mmseg's are numpy's
    path.write_text(text + '\n', encoding='utf-8')


def draw_image_grid(cfg: Config, task: str, work_dir: Path, *, title: str) -> Path:
    """Draw the predictions that the evaluation left in the work dir next to the ground truth."""
    dataset, out_file = cfg.test_dataloader.dataset, work_dir / 'predictions.png'
    root, prefix = Path(dataset.data_root), dataset.data_prefix
    if task in ('det', 'instance'):
        kind = 'bbox' if task == 'det' else 'segm'
        results = work_dir / f'predictions.{kind}.json'
        ann_file = cfg.test_evaluator.ann_file
        return draw_predictions(ann_file, root / prefix.img, results, out_file, title=title, masks=kind == 'segm')
    if task == 'panoptic':
        ann_file = root / dataset.ann_file
        folders = (root / prefix.img, root / prefix.seg, work_dir / 'predictions')
        return draw_segments(ann_file, *folders, out_file, title=title)
    images = [
        (image, root / prefix.seg_map_path / f'{image.stem}.png', work_dir / 'predictions' / f'{image.stem}.png')
        for image in sorted((root / prefix.img_path).iterdir())
    ]
    return draw_label_maps(images, dataset.metainfo.classes, out_file, reduce_zero_label=True, title=title)


def quickstart(args: argparse.Namespace, steps: list[FirstStepHook]) -> None:
    """All of it."""
    cfg = read_config(args)
    work_dir, stem = Path(cfg.work_dir), Path(args.config).stem
    prepare_data(cfg, args)
    prepare_run(cfg, args)
    check_config(cfg)
    runner, first_step = build_runner(cfg)
    steps.append(first_step)
    print(f'[quickstart] 2/4 training on {torch.get_num_threads()} threads')
    start = time.perf_counter()
    runner.train()
    seconds = time.perf_counter() - start
    print('[quickstart] 3/4 evaluating on the held-out images')
    metrics = runner.test()

    print('[quickstart] 4/4 writing the checkpoint, the metrics and the figures')
    checkpoint = save_checkpoint(work_dir, f'{stem}.pth')
    write_metrics(
        work_dir / 'metrics.json',
        metrics,
        seed=args.seed,
        iterations=runner.iter,
        training_seconds=round(seconds, 1),
        resumed=bool(cfg.get('resume')),
        threads=torch.get_num_threads(),
        config=stem,
    )
    # A run that starts anew leaves the logs of earlier ones where they are.
    logs = find_scalars(work_dir)
    curve = draw_curve(
        read_history(logs if cfg.get('resume') else logs[-1:]), work_dir / 'training_curve.png', title=stem
    )
    image_grid = draw_image_grid(cfg, args.task, work_dir, title=f'{stem}, held-out images')
    task = TASKS[args.task]
    score = next(value for key, value in metrics.items() if key.rsplit('/', 1)[-1] == task.metric) / task.unit
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f'\n[bold]{task.words} on the held-out images: {score:.3f}[/bold]  (training: {seconds / 60:.1f} minutes)'
    )
    for path in (checkpoint, work_dir / 'metrics.json', curve, image_grid):
        console.print(f'  {path}', markup=False)
    shown = Path(args.config).resolve()
    shown = shown.stem if shown.is_relative_to(CONFIGS) else shown
    console.print(f'What to do next:\n{next_steps(task.follow, shown, checkpoint)}', markup=False)


def main(argv: list[str] | None = None) -> int:
    return run_command(quickstart, parse_args(argv))
