"""Generate the dataset of the quick start: shapes before textures, in COCO's and ADE20K's layout.

mmitpn data shapes --out data/shapes
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from mmitpn.datasets.shapes import generate_images, generate_shapes
from mmitpn.datasets.shapes.generate import read_stamp
from mmitpn.visualization.image_grid import draw_image_grid, save_figure
from mmitpn.visualization.predictions import read_coco_images


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--out', type=Path, default=Path('data/shapes'), help='folder of the dataset (default: data/shapes)'
    )
    parser.add_argument('--num-train', type=int, default=400, help='training images (default: 400)')
    parser.add_argument('--num-val', type=int, default=100, help='held-out images (default: 100)')
    parser.add_argument('--seed', type=int, default=0, help='a seed gives the same dataset on any machine (default: 0)')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(128, 192), metavar=('MIN', 'MAX'), help='sides in pixels (128 192)'
    )
    parser.add_argument(
        '--unlabelled', type=int, metavar='N', help='make N images without labels instead, for pre-training'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an existing dataset')
    parser.add_argument('--image-grid', '--sheet', type=Path, metavar='FILE.png', help='draw a grid of held-out images')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    start = time.perf_counter()
    size = (args.size[0], args.size[1])
    try:
        if args.image_grid and (args.unlabelled is not None or args.image_grid.suffix != '.png'):
            raise ValueError(f'--image-grid draws labeled images into a .png file, but got {args.image_grid}')
        if args.unlabelled is not None:
            generate_images(args.out, args.unlabelled, seed=args.seed, size=size, overwrite=args.overwrite)
        else:
            generate_shapes(args.out, args.num_train, args.num_val, seed=args.seed, size=size, overwrite=args.overwrite)
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    stamp = read_stamp(args.out) or {'made': {}}
    for split, counts in stamp['made'].items():
        print(f'{args.out}: {split}: ' + ', '.join(f'{number} {what}' for what, number in counts.items()))
    print(f'{time.perf_counter() - start:.1f} s')
    if args.unlabelled is None:
        print(f'train on it: mmitpn train dino_fast-itpn-nano_shapes --data {args.out / "coco"}')
    if args.image_grid:
        coco = args.out / 'coco'
        images, *_ = read_coco_images(coco / 'annotations/instances_val2017.json', coco / 'val2017', number=24)
        print(f'grid of images: {save_figure(draw_image_grid(images, columns=6, tile=224), args.image_grid)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
