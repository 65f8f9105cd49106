"""Check the images and label maps of a segmentor's config before training on them, and count what is in them.

python tools/data/check_semantic.py CONFIG
python tools/data/check_semantic.py CONFIG --fix OUT      # maps of 0 and 255, gray color images, maps of turned images
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from mmengine.config import Config
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmitpn.config_check.messages import quoted
from mmitpn.config_check.semantic import SemanticSummary, check_semantic_config
from mmitpn.config_check.semantic_fix import LabelMapFix, fix_semantic
from mmitpn.engine.cli import DictAction, merge_options
from mmitpn.engine.config_utils import register_host_configs, resolve_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file, or FRAMEWORK::NAME')
    parser.add_argument(
        '--splits', nargs='+', default=['train', 'val'], choices=['train', 'val', 'test'], help='data loaders of CONFIG'
    )
    parser.add_argument('--sample', type=int, metavar='N', help='check only N images of each dataset (default: all)')
    parser.add_argument('--strict', action='store_true', help='fail on warnings too')
    parser.add_argument(
        '--fix', metavar='OUT', help='write repaired label maps into a new folder, and print the settings that use them'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    return parser.parse_args(argv)


def show(summary: SemanticSummary, console: Console) -> None:
    """Print the balance of the classes, and what is odd."""
    total = max(sum(summary.loaded.values()), 1)
    title = f'{summary.where}: {summary.images} images, {summary.ignored / total:.1%} of the pixels without a class'
    console.print(title, style='bold', markup=False, highlight=False, soft_wrap=True)
    table = Table('class', 'pixels', 'fraction', 'in images')
    pixels = summary.pixels
    order = pixels.argsort(kind='stable')[::-1].tolist()
    for label in order[:25]:
        count = int(pixels[label])
        table.add_row(summary.classes[label], f'{count:,}', f'{count / total:.2%}', str(summary.seen_in[label]))
    if len(order) > 25:
        table.add_row(f'and {len(order) - 25} more', '', '', '')
    console.print(table)
    for warning in summary.warnings:
        console.print(f'warning: {warning}', style='yellow', markup=False, highlight=False, soft_wrap=True)


def show_repair(repair: LabelMapFix, out: str) -> None:
    """Print what was written, and the settings that use it."""
    print(f'{repair.written} label maps written into {out}')
    if repair.values is not None:
        shown = [f'{value} -> {label}' for value, label in list(repair.values.items())[:8]]
        print(f'values: {", ".join(shown)}{" ..." if len(repair.values) > 8 else ""}')
    if repair.gray:
        print(f'{repair.gray} gray color images are maps of one channel now')
    if repair.turned:
        print(f'{repair.turned} maps were turned as their images are')
    print(f'to use them: --cfg-options {" ".join(map(quoted, repair.options))}')


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()

    def progress(indices: Sequence[int], where: str) -> Iterable[int]:
        return track(indices, description=where, console=Console(stderr=True), transient=True)

    try:
        if args.sample is not None and args.sample < 1:
            raise ValueError(f'--sample is {args.sample}; give a number of images, at least 1')
        register_host_configs()
        cfg = Config.fromfile(resolve_config(args.config))
        merge_options(cfg, args.cfg_options)
        if args.fix is not None:
            show_repair(fix_semantic(cfg, args.fix, splits=args.splits, progress=progress), args.fix)
            return 0
        summaries = check_semantic_config(cfg, splits=args.splits, sample=args.sample, progress=progress)
    except (ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 1
    for summary in summaries:
        show(summary, console)
    errors = [
        text if text.startswith(summary.where) else f'{summary.where}: {text}'
        for summary in summaries
        for text in summary.sentences()
    ]
    for text in errors:
        sys.stderr.write(f'error: {text}\n')
    warned = any(summary.warnings for summary in summaries)
    if not errors:
        print('no error found' + (', but warnings' if warned else ''))
    return 1 if errors or (warned and args.strict) else 0


if __name__ == '__main__':
    sys.exit(main())
