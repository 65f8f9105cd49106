r"""Estimate the memory that a training run needs on each GPU, before it is queued.

    python projects/memory_plan/plan.py configs/dino/dino-4scale_fast-itpn-l_8xb2-12e_coco.py --gpus 8 --size 1333x800
    python projects/memory_plan/plan.py CONFIG --size 512 --check

CONFIG is a file, or FRAMEWORK::NAME. Parameters, gradients and the states of the config's own optimizer are counted;
activations and temporaries are measured in real steps on small images on this machine's CPU and extrapolated to the
size and batch of the run. --check trains at that size on the CPU and compares. README.md says how far to trust it. GB
are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memory_plan.budget import GB, OVERHEAD, estimate, estimate_all, estimate_table, verdict
from memory_plan.model_states import ModelStates, model_states
from memory_plan.timeline import StepPrediction, StepSize, choose_sizes, predict_step
from memory_plan.training_step import (
    PRECISIONS,
    build_training_model,
    checkpointed,
    checkpointing_ways,
    least_batch,
    record_size,
)
from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmitpn.benchmark.case import BenchmarkCase, parse_size
from mmitpn.benchmark.worker import run_job
from mmitpn.config_types import is_type
from mmitpn.engine import resolve_config, setup_environment
from mmitpn.engine.cli import USER_ERRORS, DictAction

PROJECT = Path(__file__).resolve().parent
# glibc returns freed blocks to the system at once, so that the process has what its tensors use.
TRIM = {'MALLOC_TRIM_THRESHOLD_': '131072'}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config of a training run: a file, or FRAMEWORK::NAME')
    parser.add_argument('--size', type=parse_size, required=True, metavar='HxW', help='of the images in pixels')
    parser.add_argument(
        '--gpus',
        type=int,
        nargs='+',
        default=[1],
        metavar='N',
        help='number of processes, one GPU each; a table for each N',
    )
    parser.add_argument('--batch', type=int, help="images on each GPU; default: the config's")
    parser.add_argument('--objects', type=int, default=20, help='objects per image, for detectors')
    parser.add_argument('--precision', choices=PRECISIONS, help="bf16: autocast; default: the config's")
    parser.add_argument('--card', type=float, default=80.0, metavar='GB', help='memory of a GPU')
    parser.add_argument(
        '--overhead', type=float, default=OVERHEAD, metavar='GB', help='CUDA context, communication, fragmentation'
    )
    parser.add_argument('--check', action='store_true', help='train at this size on the CPU, and compare')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the figures')
    args = parser.parse_args(argv)
    for name, value in (('objects', args.objects), ('batch', args.batch), *(('gpus', number) for number in args.gpus)):
        if value is not None and value < 1:
            parser.error(f'--{name} is {value}; give an integer of at least 1')
    if args.card <= 0 or args.overhead < 0:
        parser.error(f'--card is {args.card:g} and --overhead {args.overhead:g}; give GB, --card more than 0')
    if args.check and args.precision == 'bf16':
        parser.error('--check trains in fp32: autocast on a CPU keeps other tensors than on a GPU')
    return args


def batch_of(cfg: Config) -> int:
    """Images on each GPU in the config."""
    batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    if batch is None:
        raise ValueError('the config has no train_dataloader.batch_size; give --batch')
    return batch


def precision_of(cfg: Config) -> str:
    """Precision of the config."""
    mixed = is_type(cfg.get('optim_wrapper') or {}, 'AmpOptimWrapper', 'BFloat16OptimWrapper')
    return 'bf16' if mixed else 'fp32'


def predict(args: argparse.Namespace, cfg: Config, config: Path) -> tuple[ModelStates, dict[str, StepPrediction]]:
    """Run the small steps; the model's states, and the real step for each way of checkpointing."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task('building the model', total=None)
        model = build_training_model(config, args.cfg_options)
        target, ways = StepSize(args.size, args.batch), checkpointing_ways(model)
        sizes = choose_sizes(target, least_batch=least_batch(model))
        progress.update(task, total=len(ways) * len(sizes))
        predictions = {}
        for way in ways:
            timelines = {}
            for size in sizes:
                progress.update(task, description=f'checkpointing {way}: {size}')
                with checkpointed(model, way):
                    timelines[size] = record_size(model, size, objects=args.objects, precision=args.precision)
                progress.advance(task)
            predictions[way] = predict_step(timelines, target)
    return model_states(model, cfg), predictions


def report(
    args: argparse.Namespace, model: ModelStates, predictions: dict[str, StepPrediction], console: Console
) -> dict[str, Any]:
    """Print the tables; returns the content of the JSON file."""
    steps = {way: prediction.timeline for way, prediction in predictions.items()}
    size = 'x'.join(map(str, args.size))
    columns = []
    for gpus in args.gpus:
        estimates = estimate_all(model, steps, gpus=gpus, overhead=round(args.overhead * GB))
        title = (
            f'{Path(args.config).stem}: {args.batch} x {size} on {"one GPU" if gpus == 1 else f"each of {gpus} GPUs"}'
        )
        console.print(estimate_table(estimates, f'{title}, {args.precision}'))
        for one in estimates:
            console.print(verdict(one, args.card), highlight=False)
        columns += estimates
    frozen = f', {model.frozen / GB:.2f} GB of them frozen' if model.frozen > 5e6 else ''
    console.print(
        f'{model.count / 1e6:.1f} M parameters{frozen}; {model.optimizer}; {args.objects} objects per image',
        highlight=False,
    )
    for way, prediction in predictions.items():
        grows = ', with a part that grows with pixels squared' if prediction.quadratic else ''
        sizes = ', '.join(map(str, prediction.sizes))
        console.print(
            f'checkpointing {way}: from steps of {sizes}, fitted within {prediction.misfit:.1%}{grows}',
            highlight=False,
        )
    return {
        'config': str(args.config),
        'size': list(args.size),
        'batch': args.batch,
        'objects': args.objects,
        'precision': args.precision,
        'card_gb': args.card,
        'parameters': model.count,
        'optimizer': model.optimizer,
        'columns': [{**asdict(one), 'fits': one.total <= args.card * GB} for one in columns],
        'fits_from': {
            way: {
                'points': [[*size.size, size.batch] for size in prediction.sizes],
                'quadratic': prediction.quadratic,
                'misfit': prediction.misfit,
            }
            for way, prediction in predictions.items()
        },
    }


def check(
    args: argparse.Namespace, cfg: Config, model: ModelStates, predictions: dict[str, StepPrediction], console: Console
) -> list[dict[str, Any]]:
    """Train on the CPU, each way of checkpointing in a process of its own, and print it beside the prediction."""
    path = os.pathsep.join(filter(None, [str(PROJECT), str(PROJECT.parents[1]), os.environ.get('PYTHONPATH')]))
    environment = {**TRIM, 'PYTHONPATH': path}
    table = Table(title='peak memory of training on this CPU: predicted from small steps, measured')
    for heading in ('checkpointing', 'predicted', 'tensors', 'predicted / tensors', 'process', 'predicted / process'):
        table.add_column(heading, justify='left' if heading == 'checkpointing' else 'right')
    rows = []
    with (
        TemporaryDirectory() as folder,
        console.status('training on the CPU') if console.is_terminal else nullcontext(),
    ):
        config = Path(folder) / 'config.py'
        cfg.dump(config)
        for way in (way for way in predictions if way != 'config'):
            case = BenchmarkCase(
                'detector',
                args.size,
                config=str(config),
                batch=args.batch,
                train=True,
                with_cp=way == 'all',
                objects=args.objects,
            )
            measured = run_job('training', [case], module='memory_plan.training_step', environment=environment)
            predicted = estimate(model, predictions[way].timeline, on_cpu=True).total
            row = {'checkpointing': way, 'predicted_bytes': predicted, **measured}
            rows.append(row)
            tensors, process = measured['tensor_bytes'], measured['process_bytes']
            table.add_row(
                way,
                f'{predicted / GB:.3f} GB',
                f'{tensors / GB:.3f} GB',
                f'{predicted / tensors:.3f}',
                f'{process / GB:.3f} GB',
                f'{predicted / process:.3f}',
            )
    console.print(table)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    setup_environment()
    console = Console(width=None if sys.stdout.isatty() else 180)
    try:
        config = resolve_config(args.config)
        cfg = Config.fromfile(config)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        args.batch = args.batch or batch_of(cfg)
        args.precision = args.precision or ('fp32' if args.check else precision_of(cfg))
        model, predictions = predict(args, cfg, config)
        figures: dict[str, Any] = report(args, model, predictions, console)
        if args.check:
            figures['check'] = check(args, cfg, model, predictions, console)
    except USER_ERRORS as error:
        message = ' '.join(str(error).split())
        sys.stderr.write(f'error: {message or type(error).__name__}\n')
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
