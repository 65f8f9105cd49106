r"""Speed, memory and multiply-adds of token reduction, beside those of global attention.

    python projects/token_reduction_study/benchmark_tokens.py --arch base --size 1024 --keep 0.5 0.7
    python projects/token_reduction_study/benchmark_tokens.py --arch base --size 1024 --plot trade_off.png \
        --accuracy projects/token_reduction_study/scores.json

Backbone and pyramid, forward. Peak memory is that of a fresh process for each row. Speed is measured in another
process, where all rows of one size run in turns, so that a busy machine slows them alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from token_study.methods import METHODS, drops_tokens
from token_study.sweep import draw_trade_off, measure_sweep, sweep_cases, sweep_table

from mmitpn.benchmark.case import DTYPES, parse_size
from mmitpn.benchmark.speed import describe_machine
from mmitpn.models.backbones import ARCHS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', choices=list(ARCHS), default=['base'], help='of the backbone')
    parser.add_argument(
        '--size', nargs='+', type=parse_size, default=[(224, 224)], metavar='HxW', help='of the images, in pixels'
    )
    parser.add_argument('--method', nargs='+', choices=list(METHODS), default=list(METHODS))
    parser.add_argument('--keep', nargs='+', type=float, default=[0.5], help='fractions of the tokens that stay')
    parser.add_argument('--batch', type=int, default=1, help='images per batch')
    parser.add_argument('--dtype', nargs='+', choices=list(DTYPES), default=['fp32'], help='bf16 means autocast')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, help="of the CPU; default: torch's own choice")
    parser.add_argument('--seconds', type=float, default=20.0, help='time for each size of each arch, at least')
    parser.add_argument('--rounds', type=int, default=5, help='runs of each row, at least')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write all figures, every single time included')
    parser.add_argument('--plot', type=Path, metavar='OUT.png', help='speed (first arch, size, keep) and --accuracy')
    parser.add_argument('--accuracy', type=Path, metavar='FILE.json', help='scores: {task: {method: {seed: score}}}')
    args = parser.parse_args(argv)
    if args.batch < 1 or args.rounds < 1 or args.seconds <= 0 or (args.threads is not None and args.threads < 1):
        parser.error('--batch, --rounds, --seconds and --threads must be positive')
    if (args.plot is None) != (args.accuracy is None):
        parser.error('--plot and --accuracy go together')
    return args


def measure(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """All rows, with a progress bar."""
    groups = [
        sweep_cases(
            arch,
            size,
            methods=args.method,
            keep_ratios=args.keep,
            batch=args.batch,
            dtypes=args.dtype,
            device=args.device,
        )
        for arch, size in product(args.arch, args.size)
    ]
    rows: list[dict[str, Any]] = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task('', total=sum(len(group) + 1 for group in groups))
        for group in groups:
            first = group[0].case
            progress.update(task, description=f'{first.arch} at {"x".join(map(str, first.size))}')
            rows += measure_sweep(
                group,
                threads=args.threads,
                seconds=args.seconds,
                min_rounds=args.rounds,
                advance=partial(progress.advance, task),
            )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        scores = json.loads(args.accuracy.read_text(encoding='utf-8')) if args.accuracy else {}
        rows = measure(args, console)
        console.print(sweep_table(rows))
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            report = {
                'command': sys.argv if argv is None else argv,
                'machine': describe_machine(),
                'rows': rows,
            }
            args.json.write_text(json.dumps(report, indent=1), encoding='utf-8')
        if args.plot:
            same = (rows[0]['arch'], rows[0]['size'], rows[0]['dtype'])
            shown = [row for row in rows if (row['arch'], row['size'], row['dtype']) == same]
            shown = [row for row in shown if not drops_tokens(row['method']) or row['keep_ratio'] == args.keep[0]]
            console.print(f'written: {draw_trade_off(shown, scores, args.plot)}', markup=False, highlight=False)
    except (RuntimeError, ValueError, OSError) as error:
        console.print(str(error), style='red', markup=False)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
