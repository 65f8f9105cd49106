"""Inspect, convert, check and generate datasets.

    mmitpn data inspect DIR                 layout, splits, images, objects and classes of a dataset
    mmitpn data convert DIR OUT             the same dataset in COCO's layout, or in ADE20K's for label maps
    mmitpn data check CONFIG|FILE.json      what does not fit in the data of a config, or in a COCO file
    mmitpn data shapes --out data/shapes    generate the images of the quick start

`mmitpn data check --help` and `mmitpn data shapes --help` show the options of these two.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

from mmitpn.atomic import write_atomic

OTHERS = {'check': 'mmitpn.commands.check_coco', 'shapes': 'mmitpn.commands.make_shapes'}
ADE_FOLDERS = {'train': 'training', 'val': 'validation', 'test': 'test'}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
    inspect = commands.add_parser('inspect', help='print what is in a dataset')
    convert = commands.add_parser('convert', help='copy a dataset into another layout')
    for name in OTHERS:
        commands.add_parser(name, add_help=False)
    for one in (inspect, convert):
        one.add_argument('folder', metavar='DIR', help='folder of the dataset')
        one.add_argument('--classes', nargs='+', metavar='NAME', help='names of the classes, where no file has them')
        one.add_argument('--task', choices=('instances', 'semantic'), help='objects or label maps, if both exist')
    convert.add_argument('out', metavar='OUT', type=Path, help='folder for the copy: new or empty')
    convert.add_argument('--val-fraction', type=float, metavar='F', help='fraction held out for a missing val split')
    convert.add_argument('--split-seed', type=int, default=0, metavar='N', help='seed for val images (default: 0)')
    return parser.parse_args(argv)


def convert_data(args: argparse.Namespace) -> None:
    """Copy a dataset into COCO's layout, or into ADE20K's."""
    from mmitpn.apis.data_layouts import read_own_data, split_off_validation, write_own_data
    from mmitpn.commands.own_data import show_progress

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f'{args.out} is not an empty folder; give a new or empty folder, so that no file is replaced')
    data = read_own_data(args.folder, task=args.task, classes=args.classes, progress=show_progress)
    if args.val_fraction is not None:
        data = split_off_validation(data, fraction=args.val_fraction, seed=args.split_seed)
    print(data.describe())
    if data.task == 'semantic':
        data = write_own_data(data, args.out / 'converted')
        for split, one in data.splits.items():
            folders = [args.out / kind / ADE_FOLDERS[split] for kind in ('images', 'annotations')]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            for name in show_progress(one.names, f'copying {split}'):
                shutil.copy(one.images / f'{name}{one.image_suffix}', folders[0] / f'{name}{one.image_suffix}')
                shutil.copy(one.map_of(name), folders[1] / f'{name}.png')
        shutil.rmtree(args.out / 'converted', ignore_errors=True)
        (args.out / 'classes.txt').write_text(''.join(f'{name}\n' for name in data.classes), encoding='utf-8')
    for split, one in data.splits.items() if data.task == 'instances' else ():
        (args.out / split).mkdir(parents=True)
        twice = Counter(Path(image['file_name']).name for image in one.content['images'])
        images = []
        for image in show_progress(one.content['images'], f'copying {split}'):
            path = Path(image['file_name'])
            name = path.name if twice[path.name] == 1 else '_'.join(path.parts[-3:])
            shutil.copy(one.images / path, args.out / split / name)
            images.append({**image, 'file_name': name})
        content = json.dumps({**one.content, 'images': images})
        write_atomic(args.out / f'annotations/instances_{split}.json', content.encode())
    print(f'{args.out} written')


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in OTHERS:
        sys.argv[0] = f'{sys.argv[0]} {argv[0]}'  # what argparse calls the program
        return import_module(OTHERS[argv[0]]).main(argv[1:])
    args = parse_args(argv)
    try:
        if args.action == 'convert':
            convert_data(args)
        else:
            from mmitpn.apis.data_layouts import read_own_data
            from mmitpn.commands.own_data import show_progress

            print(read_own_data(args.folder, task=args.task, classes=args.classes, progress=show_progress).describe())
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    return 0
