r"""Draw what the network sees: principal components of the backbone's maps and of the pyramid's levels as colors.

    python tools/analysis/visualize_features.py IMAGE [IMAGE ...] --weights FILE_OR_NAME --out features.png

The weights are any released Fast-iTPN or iTPN file, its name (fast-itpn-b; mmitpn weights list), or a checkpoint of a
detector or segmentor that was trained with them. Without --weights they are those of the quick start's nano network,
which was trained on generated shapes. For each map the first three principal components are red, green and blue:
positions of the same color have similar features, in all images of one call. Above a map stand its size and how much of
its variance the three colors show. The last row and column stand out where 16 does not divide the side of the image:
these positions are partly padding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmitpn.checkpoint import identify, read_checkpoint
from mmitpn.models.backbones import ITPN, FastITPN
from mmitpn.models.backbones.fast_itpn import ARCHS
from mmitpn.models.necks import ITPNPyramid
from mmitpn.utils import config_folder
from mmitpn.visualization.features import draw_features

LEVELS = 4  # strides 4, 8, 16, 32; coarser ones are only pooled from the last
LARGEST = 1024  # pixels along the longer side, unless --size says another


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', nargs='+', type=Path, metavar='IMAGE', help='image files of any size')
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        '--weights', metavar='FILE_OR_NAME', help="default: the quick start's fast-itpn-nano_shapes.pth"
    )
    source.add_argument('--random', choices=list(ARCHS), metavar='ARCH', help=f'random weights of {", ".join(ARCHS)}')
    parser.add_argument(
        '--size',
        type=int,
        metavar='N',
        help=f"resize the longer side to N pixels (default: the image's own size, at most {LARGEST})",
    )
    parser.add_argument('--out', type=Path, default=Path('features.png'), metavar='FILE.png')
    args = parser.parse_args(argv)
    if args.size is not None and args.size < 1:
        parser.error(f'--size is {args.size}; give the longer side in pixels, at least 1')
    return args


def read_image(path: Path, size: int | None) -> np.ndarray:
    """Read an image as RGB, upright (EXIF), its longer side resized to ``size`` (None: at most ``LARGEST``)."""
    if not path.is_file():
        raise FileNotFoundError(f'no image {path}')
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert('RGB')
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path} cannot be read as an image: {error}') from error
    scale = (size or min(LARGEST, max(image.size))) / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    return np.asarray(image if scale == 1 else image.resize((width, height), Image.Resampling.BICUBIC))


def build(args: argparse.Namespace) -> tuple[FastITPN | ITPN, ITPNPyramid | None, str]:
    """Backbone and pyramid in evaluation mode, and a few words on their weights; no pyramid where the file has none."""
    if args.random:
        backbone = FastITPN(args.random).eval()
        return backbone, ITPNPyramid(backbone.out_channels, num_outs=LEVELS).eval(), f'{args.random}, random weights'
    weights = args.weights or config_folder() / 'quickstart/fast-itpn-nano_shapes.pth'
    try:
        info = identify(read_checkpoint(weights, mmap=True))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{error}; give --weights FILE_OR_NAME, any released file of Fast-iTPN or iTPN, or --random ARCH'
        ) from error
    family = ITPN if info.family == ITPN.family else FastITPN
    backbone = family.from_pretrained(weights)
    if info.pyramid is None:
        return backbone, None, f'{Path(weights).name}, which has no pyramid'
    return backbone, ITPNPyramid.from_pretrained(weights, num_outs=LEVELS), Path(weights).name


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        images = [read_image(path, args.size) for path in args.image]
        backbone, pyramid, words = build(args)
        print(draw_features(images, args.out, backbone=backbone, pyramid=pyramid, title=words))
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
