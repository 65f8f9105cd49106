"""Check COCO datasets before training on them, and count what is in them.

python tools/data/check_coco.py CONFIG                                  the datasets, class numbers and channels
python tools/data/check_coco.py FILE.json --images DIR                  one COCO annotation file and its images
python tools/data/check_coco.py FILE.json --images DIR --fix OUT.json   a repaired copy, with a table of the changes

Every image is loaded; --quick looks for 20 of each dataset only. For label maps see check_semantic.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmitpn.config_check import CocoSummary, check_coco_json, check_config
from mmitpn.config_check.coco_fix import fix_coco_json
from mmitpn.engine.cli import DictAction
from mmitpn.engine.config_utils import register_host_configs, resolve_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('target', metavar='CONFIG|FILE.json', help='config file, FRAMEWORK::NAME, or COCO JSON file')
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of the images of FILE.json')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='classes to compare FILE.json with')
    parser.add_argument(
        '--purpose',
        default='both',
        choices=['train', 'eval', 'both'],
        help='what FILE.json is used for: an evaluation reads more fields (default: both)',
    )
    parser.add_argument('--masks', action='store_true', help='every annotation of FILE.json must have a mask')
    parser.add_argument(
        '--fix',
        type=Path,
        metavar='OUT.json',
        help='write a repaired copy of FILE.json (ids, area, iscrowd, boxes, empty masks, names; sizes with --images)',
    )
    parser.add_argument(
        '--segments', type=Path, metavar='DIR', help='folder of the PNGs of a panoptic FILE.json, for --fix'
    )
    parser.add_argument(
        '--max-bad-boxes',
        type=float,
        metavar='FRACTION',
        help='largest accepted fraction of boxes without area or outside their image (default: 0.1, and 0.5 where '
        "they reach outside by at most a tenth of the image's side)",
    )
    parser.add_argument(
        '--splits', nargs='+', default=['train', 'val'], choices=['train', 'val', 'test'], help='data loaders of CONFIG'
    )
    parser.add_argument(
        '--quick', action='store_true', help='look for 20 images of each dataset, and read headers only'
    )
    parser.add_argument('--strict', action='store_true', help='fail on warnings too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    return parser.parse_args(argv)


def summarize(args: argparse.Namespace) -> list[CocoSummary]:
    """Run the checks that the arguments ask for."""
    how = {'sample_images': 20 if args.quick else None, 'open_images': not args.quick}
    if args.target.endswith('.json'):
        return [
            check_coco_json(
                args.target if args.fix is None else args.fix,
                args.classes,
                args.images,
                max_bad_boxes=args.max_bad_boxes,
                evaluation={'train': False, 'eval': True}.get(args.purpose),
                masks_read_by='a model that learns from masks (--masks)' if args.masks else None,
                need_annotations=args.purpose != 'eval',
                **how,
            )
        ]
    of_file = {'--images': args.images, '--classes': args.classes, '--fix': args.fix, '--segments': args.segments}
    given = [name for name, value in of_file.items() if value]
    if given or args.masks or args.purpose != 'both':
        raise ValueError(
            f'{given[0] if given else "--masks" if args.masks else "--purpose"} belongs to FILE.json; a config names '
            'its own files, images, classes and uses'
        )
    register_host_configs()
    cfg = Config.fromfile(resolve_config(args.target))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.max_bad_boxes is not None:
        cfg.max_bad_boxes = args.max_bad_boxes
    return check_config(cfg, splits=args.splits, **how)


def fix(args: argparse.Namespace, console: Console) -> None:
    """Write the repaired copy and print what was changed."""
    changes = fix_coco_json(args.target, args.fix, args.images, seg_dir=args.segments)
    console.print(f'{args.fix} written', style='bold', markup=False, highlight=False, soft_wrap=True)
    table = Table('changed', 'number')
    for what, number in changes.items():
        table.add_row(what, str(number))
    if changes:
        console.print(table)
    else:
        console.print('nothing was changed: the file has nothing that is repairable mechanically')


def show(summary: CocoSummary, console: Console) -> None:
    """Print what a file holds."""
    console.print(str(summary.path), style='bold', markup=False, highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    small, medium, large = summary.sizes
    rows: list[tuple[str, object]] = [
        ('images', summary.images),
        ('images looked for and found', summary.images_found or '- (--images DIR looks for them)'),
        ('images without annotation', summary.without_objects),
        ('annotations', summary.annotations),
        ('of them crowds', summary.crowd),
        ('boxes below 32x32, below 96x96, larger', f'{small}, {medium}, {large}'),
    ]
    if summary.remainder is not None:
        left = f'{summary.remainder.images}, {summary.remainder.objects}'
        rows.append(('images and objects that mmdet keeps', left))
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
        if args.fix is not None and args.target.endswith('.json'):
            fix(args, console)
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
