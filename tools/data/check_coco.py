"""Check COCO data sets before training on them, and count what is in them.

python tools/data/check_coco.py CONFIG              the data sets, class numbers and channels of a config
python tools/data/check_coco.py FILE.json --images DIR   one COCO annotation file and its pictures

Every picture is opened; --quick looks for 20 of each set only. For label maps see check_semantic.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config, DictAction
from rich.console import Console
from rich.table import Table

from mmitpn.datasets.check import CocoSummary, check_coco_json, check_config
from mmitpn.engine.host_configs import register_host_configs, resolve_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('target', metavar='CONFIG|FILE.json', help='config file, HOST::NAME, or COCO annotation file')
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of the pictures of FILE.json')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='classes to compare FILE.json with')
    parser.add_argument(
        '--splits', nargs='+', default=['train', 'val'], choices=['train', 'val', 'test'], help='data loaders of CONFIG'
    )
    parser.add_argument('--quick', action='store_true', help='look for 20 pictures of each set, and open none')
    parser.add_argument('--strict', action='store_true', help='fail on warnings too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    return parser.parse_args(argv)


def summarize(args: argparse.Namespace) -> list[CocoSummary]:
    """Run the checks that the arguments ask for."""
    how = {'sample_images': 20 if args.quick else None, 'open_images': not args.quick}
    if args.target.endswith('.json'):
        return [check_coco_json(args.target, args.classes, args.images, **how)]
    if args.images or args.classes:
        raise ValueError('--images and --classes belong to FILE.json; a config names its own')
    register_host_configs()
    cfg = Config.fromfile(resolve_config(args.target))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    return check_config(cfg, splits=args.splits, **how)


def show(summary: CocoSummary, console: Console) -> None:
    """Print what a file holds."""
    console.print(str(summary.path), style='bold', markup=False, highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    small, medium, large = summary.sizes
    rows: list[tuple[str, object]] = [
        ('pictures', summary.images),
        ('pictures looked for and found', summary.pictures_found),
        ('pictures without annotation', summary.without_objects),
        ('annotations', summary.annotations),
        ('of them crowds', summary.crowd),
        ('boxes below 32x32, below 96x96, larger', f'{small}, {medium}, {large}'),
    ]
    rows += list(sorted(summary.per_category.items(), key=lambda item: -item[1])[:20])
    if len(summary.per_category) > 20:
        rows.append(('and more categories', len(summary.per_category) - 20))
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)
    for warning in summary.warnings:
        console.print(f'warning: {warning}', style='yellow', markup=False, highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()
    try:
        summaries = summarize(args)
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 1
    for summary in summaries:
        show(summary, console)
    warned = any(summary.warnings for summary in summaries)
    print('no error found' + (', but warnings' if warned else ''))
    return 1 if warned and args.strict else 0


if __name__ == '__main__':
    sys.exit(main())
