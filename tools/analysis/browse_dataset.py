"""Draw a grid of images of a dataset, as the model gets them, with their labels.

python tools/analysis/browse_dataset.py CONFIG --out grid.png                  after the augmentation of the config
python tools/analysis/browse_dataset.py FILE.json --images DIR --out grid.png  as the files are
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import set_random_seed

from mmitpn.engine.cli import DictAction
from mmitpn.engine.config_utils import register_host_configs, resolve_config
from mmitpn.utils import evenly_spaced, mask_to_box
from mmitpn.visualization.image_grid import AnnotatedImage, draw_image_grid, save_figure
from mmitpn.visualization.predictions import read_coco_images


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('target', metavar='CONFIG|FILE.json', help='config file, FRAMEWORK::NAME, or COCO JSON file')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.png', help='the grid of images')
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of the images of FILE.json')
    parser.add_argument('--split', default='train', choices=['train', 'val', 'test'], help='data loader of CONFIG')
    parser.add_argument('--number', type=int, default=24, help='images (default: 24)')
    parser.add_argument('--columns', type=int, default=6, help='images per row (default: 6)')
    parser.add_argument('--tile', type=int, default=224, help='side of an image in the grid, in pixels (default: 224)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the augmentation (default: 0)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    return parser.parse_args(argv)


def pipeline_images(args: argparse.Namespace) -> list[AnnotatedImage]:
    """Evenly spaced images of a config's dataset, after its pipeline."""
    register_host_configs()
    cfg = Config.fromfile(resolve_config(args.target))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    set_random_seed(args.seed)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        dataset = DATASETS.build(cfg[f'{args.split}_dataloader'].dataset)
    names = dataset.metainfo['classes']
    return [annotated(dataset[index], names) for index in evenly_spaced(range(len(dataset)), args.number)]


def annotated(item: dict, names: tuple[str, ...]) -> AnnotatedImage:
    """A packed image, BGR as mmdet's pipelines load it, with its boxes and masks."""
    image = np.clip(item['inputs'].numpy()[::-1].transpose(1, 2, 0), 0, 255).astype(np.uint8)
    instances = getattr(item['data_samples'], 'gt_instances', None)
    label_map = getattr(item['data_samples'], 'gt_sem_seg', None)
    if instances is None and label_map is not None:
        return semantic(image, label_map.data.squeeze(0).numpy(), names)
    if instances is None:
        raise ValueError('this dataset has no boxes, masks or label maps to draw')
    boxes = getattr(instances.bboxes, 'tensor', instances.bboxes).tolist()
    labels = instances.labels.tolist()
    masks = instances.masks.to_ndarray().astype(bool) if 'masks' in instances else ()
    return AnnotatedImage(
        image, labels=labels, texts=[names[label] for label in labels], boxes=boxes, masks=list(masks)
    )


def semantic(image: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> AnnotatedImage:
    """An image with its label map: a mask for each class that is seen, its name at the mask's corner."""
    seen = [int(label) for label in np.unique(labels) if label < len(names)]
    masks = [labels == label for label in seen]
    boxes = []
    for mask in masks:
        x, y, width, height = mask_to_box(mask)
        boxes.append([x, y, x + width, y + height])
    return AnnotatedImage(image, labels=seen, texts=[names[label] for label in seen], boxes=boxes, masks=masks)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.number < 1 or args.columns < 1 or args.tile < 32:
            raise ValueError('--number and --columns must be at least 1, and --tile at least 32')
        if not args.target.endswith('.json'):
            images = pipeline_images(args)
        elif args.images is None:
            raise ValueError('FILE.json needs --images DIR, the folder of its images')
        else:
            images, *_ = read_coco_images(args.target, args.images, number=args.number)
        save_figure(draw_image_grid(images, columns=args.columns, tile=args.tile), args.out)
    except (ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    print(f'{len(images)} images: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
