r"""How far token reduction moves a network's maps, without any training: what the default settings were chosen by.

    python projects/token_reduction_study/token_distance.py --images data/shapes/coco/val2017 \
        --arch nano --img-size 128 --weights configs/quickstart/fast-itpn-nano_shapes.pth --window-size 4

The distance of a map to the one of global attention with the same weights is the norm of the difference over the norm
of the map, at stride 16, over all images.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import token_study  # noqa: F401 - registers the compared methods and scores
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mmitpn import FastITPN
from mmitpn.checkpoint import load_pretrained
from mmitpn.models.backbones import ARCHS
from mmitpn.models.token_reduction import POOLS, REDUCERS, SCORES
from mmitpn.utils import IMAGENET_MEAN, IMAGENET_STD


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=Path, required=True, metavar='DIR', help='folder of images')
    parser.add_argument('--weights', required=True, metavar='FILE', help='weights of the backbone')
    parser.add_argument('--arch', choices=tuple(ARCHS), default='base', help='its size (default: base)')
    parser.add_argument('--img-size', type=int, default=224, help='side that images are resized to (default: 224)')
    parser.add_argument('--number', type=int, default=24, help='images (default: 24)')
    parser.add_argument('--window-size', type=int, default=16, help='of token gathering (default: 16)')
    parser.add_argument('--num-tokens', type=int, nargs='+', default=[0, 1, 4], help='gathering tokens per window')
    parser.add_argument(
        '--global-blocks', type=int, nargs='+', metavar='N', help='also windows alone, these blocks global'
    )
    parser.add_argument('--keep', type=float, nargs='*', default=[0.75, 0.5, 0.25], help='fractions of tokens kept')
    return parser.parse_args(argv)


def read_images(folder: Path, number: int, side: int) -> Tensor:
    """Normalized images ``(B, 3, side, side)``."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))[:number]
    if not files:
        raise FileNotFoundError(f'no .jpg or .png in {folder}')
    images = []
    for path in files:
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert('RGB').resize((side, side), Image.Resampling.BILINEAR), np.float32)
        images.append(torch.from_numpy((pixels - IMAGENET_MEAN) / IMAGENET_STD).permute(2, 0, 1).float())
    return torch.stack(images)


def variants(args: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, description of the settings, and arguments of the backbone."""
    found = [
        (
            'gathering',
            f'{number} tokens per window{f" by {pool}" if number else ""}',
            {'token_gathering': {**gathering(args, number), 'pool': pool}},
        )
        for number in args.num_tokens
        for pool in (POOLS if number else ('mean',))
    ]
    if args.global_blocks:
        settings = {**gathering(args, 0), 'global_blocks': args.global_blocks}
        found.append(('gathering', f'0 tokens, blocks {args.global_blocks} global', {'token_gathering': settings}))
    for follow, score, keep in product((False, True), SCORES, args.keep):
        description = f'{score}, {"follow" if follow else "unchanged"}, keep {keep:g}'
        settings = {'score': score, 'follow': follow, 'keep_ratio': keep}
        found.append(('migration', description, {'token_migration': settings}))
    for kind, keep in product((name for name in REDUCERS if name != 'TokenMigration'), args.keep):
        found.append((kind, f'keep {keep:g}', {'token_migration': {'type': kind, 'keep_ratio': keep}}))
    return found


def gathering(args: argparse.Namespace, number: int) -> dict[str, int]:
    return {'window_size': args.window_size, 'num_tokens': number}


@torch.inference_mode()
def run(args: argparse.Namespace, images: Tensor, **reduction: Any) -> Tensor:
    """The map at stride 16."""
    torch.manual_seed(0)
    model = FastITPN(args.arch, img_size=args.img_size, **reduction).eval()
    load_pretrained(model, args.weights)
    return torch.cat([model(part)[-1] for part in images.split(4)])


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        images = read_images(args.images, args.number, args.img_size)
        exact = run(args, images)
        table = Table(title=f'distance to global attention, {len(images)} images')
        for heading in ('method', 'settings', 'alone', 'with gathering'):
            table.add_column(heading)
        with_windows = {'token_gathering': gathering(args, args.num_tokens[-1])}
        for name, description, reduction in track(variants(args), description='variants'):
            runs = [reduction] if name == 'gathering' else [reduction, {**reduction, **with_windows}]
            distances = [float((run(args, images, **one) - exact).norm() / exact.norm()) for one in runs]
            table.add_row(name, description, *(f'{value:.3f}' for value in distances))
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    Console(width=110).print(table)
    return 0


if __name__ == '__main__':
    sys.exit(main())
