"""Compare formats and precisions of models on this processor: accuracy, latency, images per second, memory.

    mmitpn benchmark nano-shapes model.onnx model.xml model-int8.xml --data dino_fast-itpn-nano_shapes
    mmitpn benchmark CONFIG=CHECKPOINT model.onnx --size 512x512         # speed only

MODEL is a file of `mmitpn export`, CONFIG=CHECKPOINT or the name of a complete model (PyTorch, fp32), or a checkpoint
of --data's config. Each model runs in a process of its own; they take turns, so that all meet the same load. DIR gets
benchmark.json with every run, and benchmark.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmitpn.benchmark.case import parse_size

STEPS = {'load': 'load models', 'speed': 'speed, in turns', 'accuracy': 'accuracy, images'}
WIDTH = 150  # of the table where the output is no terminal


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='+', metavar='MODEL', help='exported file, CONFIG=CHECKPOINT, or nano-shapes')
    parser.add_argument('--data', metavar='CONFIG', help='measure accuracy: test dataset and metrics of this config')
    parser.add_argument('--images', type=_positive, metavar='N', help='only the first N images of the dataset')
    parser.add_argument(
        '--size',
        type=parse_size,
        metavar='HxW',
        help='height and width of the inputs (default: of an exported file, of the first test image, or 512x512)',
    )
    parser.add_argument('--batch', type=_positive, default=8, metavar='N', help='batch size of images/s (default: 8)')
    parser.add_argument('--threads', type=_positive, metavar='N', help='CPU threads per model (default: all cores)')
    parser.add_argument('--rounds', type=_positive, default=11, metavar='N', help='turns of each model (default: 11)')
    parser.add_argument(
        '--seconds', type=_seconds, default=0.5, metavar='S', help='length of a turn at each batch size (default: 0.5)'
    )
    parser.add_argument('--features', action='store_true', help='run only backbone and neck of eager models')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/benchmark'), metavar='DIR', help='default: work_dirs/benchmark'
    )
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override settings of the config of --data'
    )
    parser.add_argument('--debug', action='store_true', help='show where an error was raised')
    args = parser.parse_args(argv)
    if args.data is None and (args.images is not None or args.cfg_options):
        parser.error('--images and --cfg-options belong to --data CONFIG')
    wrong = next((option for option in args.cfg_options if '=' not in option), None)
    if wrong is not None:
        parser.error(f'--cfg-options {wrong!r} must be KEY=VALUE')
    return args


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not an integer of at least 1')
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f'{text!r} seconds; give a number above 0 and below 3600')
    return value


@contextmanager
def show_progress(console: Console) -> Iterator[object]:
    """A bar with remaining time for each part of the measurement; gives what ``compare_formats`` reports to."""
    columns = (TextColumn('{task.description:<17}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    columns += (TextColumn('left:'), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(STEPS[step], total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield report


def benchmark(args: argparse.Namespace, steps: list) -> None:
    """Measure, print the table, and write the files."""
    from mmitpn.benchmark.format_report import describe, draw_comparison, make_table, write_json
    from mmitpn.benchmark.formats import compare_formats, parse_models

    del steps
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f'--out {args.out} is a file; give a folder')
    sources = parse_models(args.models, data=args.data)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    with show_progress(console) as report:
        comparison = compare_formats(
            sources,
            data=args.data,
            options=args.cfg_options,
            images=args.images,
            size=args.size,
            batch=args.batch,
            threads=args.threads,
            rounds=args.rounds,
            seconds=args.seconds,
            features=args.features,
            progress=report,
        )
    console.print(make_table(comparison))
    for line in describe(comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    written = write_json(comparison, args.out / 'benchmark.json')
    drawing = draw_comparison(comparison, args.out / 'benchmark.png')
    console.print(f'every run: {written}, plot: {drawing}', highlight=False, markup=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Compare; returns 0, or 2 for a mistake in the command."""
    from mmitpn.engine.cli import run_command

    return run_command(benchmark, parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
