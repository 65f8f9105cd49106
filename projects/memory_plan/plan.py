r"""What a training needs on each GPU, before it is queued.

    python tools/analysis/memory_plan.py configs/dino/dino-4scale_fast-itpn-l_8xb2-12e_coco.py --gpus 8 --size 1333x800
    python tools/analysis/memory_plan.py CONFIG --size 512 --check

CONFIG is a file, or HOST::NAME. Parameters, gradients and the states of the config's own optimiser are counted;
activations and temporaries are measured in real steps on small pictures on this machine's CPU and carried on to the
size and batch asked for. --check trains at that size on the CPU and compares. docs/memory_plan.md says how far to trust
it. GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmitpn.analysis.cases import Case, parse_size
from mmitpn.analysis.memory_fit import Point, Prediction, choose_points, predict_step
from mmitpn.analysis.memory_plan import GB, OVERHEAD, plan, plan_table, plans, verdict
from mmitpn.analysis.model_facts import ModelFacts, model_facts
from mmitpn.analysis.subprocess_job import run_job
from mmitpn.analysis.training_step import (
    PRECISIONS,
    build_training_model,
    checkpointed,
    checkpointing_ways,
    least_batch,
    trace_point,
)
from mmitpn.config_types import is_type
from mmitpn.engine import resolve_config, setup_environment
from mmitpn.engine.cli import USER_ERRORS, DictAction

# glibc gives freed blocks back at once, so that a process holds what it uses.
GIVE_BACK = {'MALLOC_TRIM_THRESHOLD_': '131072'}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config of a training: a file, or HOST::NAME')
    parser.add_argument('--size', type=parse_size, required=True, metavar='HxW', help='of the pictures in pixels')
    parser.add_argument(
        '--gpus', type=int, nargs='+', default=[1], metavar='N', help='processes, one GPU each; a table for each N'
    )
    parser.add_argument('--batch', type=int, help="pictures on each GPU; default: the config's")
    parser.add_argument('--objects', type=int, default=20, help='objects a picture, for detectors')
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
            parser.error(f'--{name} is {value}; give a whole number of at least 1')
    if args.card <= 0 or args.overhead < 0:
        parser.error(f'--card is {args.card:g} and --overhead {args.overhead:g}; give GB, --card more than 0')
    if args.check and args.precision == 'bf16':
        parser.error('--check trains in fp32: a CPU keeps other tensors under autocast than a GPU')
    return args


def batch_of(cfg: Config) -> int:
    """Pictures on each GPU by the config."""
    batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    if batch is None:
        raise ValueError('the config has no train_dataloader.batch_size; give --batch')
    return batch


def precision_of(cfg: Config) -> str:
    """How the config computes."""
    mixed = is_type(cfg.get('optim_wrapper') or {}, 'AmpOptimWrapper', 'BFloat16OptimWrapper')
    return 'bf16' if mixed else 'fp32'


def predict(args: argparse.Namespace, cfg: Config, config: Path) -> tuple[ModelFacts, dict[str, Prediction]]:
    """Run the small steps; the model's facts, and for each way of checkpointing the step asked for."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task('building the model', total=None)
        model = build_training_model(config, args.cfg_options)
        target, ways = Point(args.size, args.batch), checkpointing_ways(model)
        points = choose_points(target, least_batch=least_batch(model))
        progress.update(task, total=len(ways) * len(points))
        found = {}
        for way in ways:
            traces = {}
            for point in points:
                size = 'x'.join(map(str, point.size))
                progress.update(task, description=f'checkpointing {way}: {point.batch} of {size}')
                with checkpointed(model, way):
                    traces[point] = trace_point(model, point, objects=args.objects, precision=args.precision)
                progress.advance(task)
            found[way] = predict_step(traces, target)
    return model_facts(model, cfg), found


def report(args: argparse.Namespace, facts: ModelFacts, found: dict[str, Prediction], console: Console) -> dict:
    """Print the tables; what a file is given."""
    traces = {way: prediction.trace for way, prediction in found.items()}
    size = 'x'.join(map(str, args.size))
    columns = []
    for gpus in args.gpus:
        budgets = plans(facts, traces, gpus=gpus, overhead=round(args.overhead * GB))
        title = (
            f'{Path(args.config).stem}: {args.batch} x {size} on {"one GPU" if gpus == 1 else f"each of {gpus} GPUs"}'
        )
        console.print(plan_table(budgets, f'{title}, {args.precision}'))
        for budget in budgets:
            console.print(verdict(budget, args.card), highlight=False)
        columns += budgets
    frozen = f', {facts.frozen / GB:.2f} GB of them frozen' if facts.frozen > 5e6 else ''
    console.print(
        f'{facts.count / 1e6:.1f} M parameters{frozen}; {facts.optimizer}; {args.objects} objects a picture',
        highlight=False,
    )
    for way, prediction in found.items():
        steps = ', '.join(f'{point.batch} x {"x".join(map(str, point.size))}' for point in prediction.points)
        grows = ', with a part that grows with pixels squared' if prediction.quadratic else ''
        console.print(
            f'checkpointing {way}: from steps of {steps}, which the fit meets within {prediction.misfit:.1%}{grows}',
            highlight=False,
        )
    return {
        'config': str(args.config),
        'size': list(args.size),
        'batch': args.batch,
        'objects': args.objects,
        'precision': args.precision,
        'card_gb': args.card,
        'parameters': facts.count,
        'optimizer': facts.optimizer,
        'columns': [{**asdict(budget), 'fits': budget.total <= args.card * GB} for budget in columns],
        'fits_from': {
            way: {
                'points': [[*point.size, point.batch] for point in prediction.points],
                'quadratic': prediction.quadratic,
                'misfit': prediction.misfit,
            }
            for way, prediction in found.items()
        },
    }


def check(
    args: argparse.Namespace, cfg: Config, facts: ModelFacts, found: dict[str, Prediction], console: Console
) -> list[dict[str, Any]]:
    """Train on the CPU, each way of checkpointing in a process of its own, and print it beside the prediction."""
    table = Table(title='peak of a training on this CPU: predicted from small steps, measured')
    for heading in ('checkpointing', 'predicted', 'tensors', 'predicted / tensors', 'process', 'predicted / process'):
        table.add_column(heading, justify='left' if heading == 'checkpointing' else 'right')
    rows = []
    with (
        TemporaryDirectory() as folder,
        console.status('training on the CPU') if console.is_terminal else nullcontext(),
    ):
        config = Path(folder) / 'config.py'
        cfg.dump(config)
        for way in (way for way in found if way != 'config'):
            case = Case(
                'detector',
                args.size,
                config=str(config),
                batch=args.batch,
                train=True,
                with_cp=way == 'all',
                objects=args.objects,
            )
            measured = run_job('training', [case], environment=GIVE_BACK)
            predicted = plan(facts, found[way].trace, on_cpu=True).total
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
        facts, found = predict(args, cfg, config)
        figures: dict[str, Any] = report(args, facts, found, console)
        if args.check:
            figures['check'] = check(args, cfg, facts, found, console)
    except USER_ERRORS as error:
        said = ' '.join(str(error).split())
        sys.stderr.write(f'error: {said or type(error).__name__}\n')
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
