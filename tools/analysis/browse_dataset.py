"""Draw a contact sheet of a data set: what the model is shown, with its labels.

python tools/analysis/browse_dataset.py CONFIG --out sheet.png                  after the augmentation of the config
python tools/analysis/browse_dataset.py FILE.json --images DIR --out sheet.png  as the files are
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import set_random_seed

from mmitpn.datasets.sheet import Labelled, coco_pictures, colour_of, draw_sheet
from mmitpn.engine.cli import DictAction
from mmitpn.engine.config_utils import register_host_configs, resolve_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('target', metavar='CONFIG|FILE.json', help='config file, HOST::NAME, or COCO annotation file')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.png', help='the sheet')
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of the pictures of FILE.json')
    parser.add_argument('--split', default='train', choices=['train', 'val', 'test'], help='data loader of CONFIG')
    parser.add_argument('--number', type=int, default=24, help='pictures (default: 24)')
    parser.add_argument('--columns', type=int, default=6, help='pictures in a row (default: 6)')
    parser.add_argument(
        '--tile', type=int, default=224, help='side of a picture in the sheet, in pixels (default: 224)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the augmentation (default: 0)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    return parser.parse_args(argv)


def pipeline_pictures(args: argparse.Namespace) -> list[Labelled]:
    """Evenly spaced pictures of a config's data set, after its pipeline."""
    register_host_configs()
    cfg = Config.fromfile(resolve_config(args.target))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    set_random_seed(args.seed)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        dataset = DATASETS.build(cfg[f'{args.split}_dataloader'].dataset)
    names = dataset.metainfo['classes']
    number = min(args.number, len(dataset))
    return [labelled(dataset[i * len(dataset) // number], names) for i in range(number)]


def labelled(item: dict, names: tuple[str, ...]) -> Labelled:
    """A packed picture, BGR as mmdet's pipelines load it, with its boxes and masks."""
    image = np.clip(item['inputs'].numpy()[::-1].transpose(1, 2, 0), 0, 255).astype(np.uint8)
    truth = getattr(item['data_samples'], 'gt_instances', None)
    label_map = getattr(item['data_samples'], 'gt_sem_seg', None)
    if truth is None and label_map is not None:
        return semantic(image, label_map.data.squeeze(0).numpy(), names)
    if truth is None:
        raise ValueError('this data set has no boxes, masks or label maps to draw')
    boxes = getattr(truth.bboxes, 'tensor', truth.bboxes).tolist()
    labels = truth.labels.tolist()
    masks = truth.masks.to_ndarray().astype(bool) if 'masks' in truth else ()
    return Labelled(
        image=image,
        boxes=boxes,
        names=[names[label] for label in labels],
        colours=[colour_of(label) for label in labels],
        masks=list(masks),
    )


def semantic(image: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> Labelled:
    """A picture with its label map: a mask for each class that is seen, its name at the mask's corner."""
    seen = [int(label) for label in np.unique(labels) if label < len(names)]
    masks = [labels == label for label in seen]
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return Labelled(
        image=image,
        boxes=boxes,
        names=[names[label] for label in seen],
        colours=[colour_of(label) for label in seen],
        masks=masks,
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.number < 1 or args.columns < 1 or args.tile < 32:
            raise ValueError('--number and --columns must be at least 1, and --tile at least 32')
        if not args.target.endswith('.json'):
            pictures = pipeline_pictures(args)
        elif args.images is None:
            raise ValueError('FILE.json needs --images DIR, the folder of its pictures')
        else:
            pictures = coco_pictures(args.target, args.images, number=args.number)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(pictures, columns=args.columns, tile=args.tile).save(args.out)
    except (ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    print(f'{len(pictures)} pictures: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
