"""What do frozen features know? One 1x1 convolution on backbone and pyramid, segmentation of generated shapes.

    python projects/pretraining_study/probe.py random FILE.pth [FILE.pth ...] --train DIR --test DIR

Backbone and pyramid are frozen; the levels at strides 4, 8 and 16 are resized to stride 4 and concatenated, each
channel is standardized over the training images, and one 1x1 convolution with bias learns the classes (softmax
regression, twelve passes of Adam, class weights as in the quick start's segmentor). Its logits are resized to the
image, as mmseg does.
Everything but the weights of the network is equal for all rows, random weights included.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmitpn import FastITPN, ITPNPyramid
from mmitpn.checkpoint import load_pretrained
from mmitpn.utils import IMAGENET_MEAN, IMAGENET_STD

SIDE = 128
WIDTH = 128
CLASSES = ('circle', 'square', 'triangle', 'star', 'ring', 'gradient', 'noise', 'stripes', 'checker')
NUM_SHAPES = 5
CLASS_WEIGHTS = (2.0,) * NUM_SHAPES + (0.5,) * (len(CLASSES) - NUM_SHAPES)
IGNORED = 255
EPOCHS, PIXELS, LEARNING_RATE = 12, 8192, 5e-3


@dataclass(frozen=True)
class ProbeScore:
    """Mean intersection over union, 0 to 1: of all classes, of the five shapes, of the four textures."""

    mean_iou: float
    shapes: float
    textures: float


def read_split(root: Path, split: str, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Images and labels of a dataset in ADE20K's layout, at 128x128.

    Args:
        root: Folder with ``images/`` and ``annotations/``.
        split: ``'training'`` or ``'validation'``.
        limit: Number of images, the first of the split; None: all.

    Returns:
        uint8 ``(N, 3, 128, 128)`` RGB and ``(N, 128, 128)``; 255 is ignored.
    """
    files = sorted((root / 'images' / split).iterdir())[:limit]
    if not files:
        raise FileNotFoundError(f'{root}/images/{split} has no images: mmitpn data shapes --out DIR makes them')
    images, labels = [], []
    for file in files:
        with Image.open(file) as image:
            images.append(np.asarray(image.convert('RGB').resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
        with Image.open(root / 'annotations' / split / f'{file.stem}.png') as label:
            labels.append(np.asarray(label.resize((SIDE, SIDE), Image.Resampling.NEAREST)))
    label = torch.from_numpy(np.stack(labels))
    label = torch.where(label == 0, IGNORED, label - 1)  # 0 is the seam between textures
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), label


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB ``(B, 3, H, W)`` as the networks take it."""
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.float() - mean) / std


def build_features(file: str | None, seed: int = 0) -> nn.Sequential:
    """The study's backbone and pyramid; with random weights of this seed where there is no file."""
    torch.manual_seed(seed)
    backbone = FastITPN(
        'nano', img_size=SIDE, weight_init='xavier', pos_embed_init='sincos', layer_scale_init_value=1.0
    )
    neck = ITPNPyramid(backbone.out_channels, out_channels=WIDTH, num_outs=3, weight_init='xavier')
    if file is not None:
        load_pretrained(backbone, file)
        load_pretrained(neck, file)
    return nn.Sequential(backbone, neck).eval()


@torch.no_grad()
def fused_levels(network: nn.Module, images: Tensor, batch: int = 50) -> Iterator[Tensor]:
    """Levels of uint8 images, resized to stride 4 and concatenated: ``(B, 3 * 128, 32, 32)``, fp32."""
    for part in images.split(batch):
        levels = network(normalize(part))
        size = levels[0].shape[-2:]
        yield torch.cat([F.interpolate(x, size=size, mode='bilinear', align_corners=False) for x in levels], 1)


def fit_probe(network: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> nn.Conv2d:
    """The 1x1 convolution, learned on frozen features; the standardization of the channels is folded into it."""
    rows, targets = [], []
    fine = labels[:, 2::4, 2::4]  # one pixel of each cell of stride 4
    for x, y in zip(fused_levels(network, images), fine.split(50), strict=True):
        known = y != IGNORED
        rows.append(x.permute(0, 2, 3, 1)[known])
        targets.append(y[known])
    x, y = torch.cat(rows), torch.cat(targets).long()
    mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
    x.sub_(mean).div_(deviation)
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(x.shape[1], len(CLASSES))
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.Adam(linear.parameters(), lr=LEARNING_RATE)
    batch = min(PIXELS, len(x))
    used = len(x) // batch * batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * (used // batch))
    weights = torch.tensor(CLASS_WEIGHTS)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(x), generator=generator)[:used].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(linear(x[index]), y[index], weight=weights).backward()
            optimizer.step()
            schedule.step()
    conv = nn.Conv2d(x.shape[1], len(CLASSES), 1)
    with torch.no_grad():
        weight = linear.weight / deviation
        conv.weight.copy_(weight[:, :, None, None])
        conv.bias.copy_(linear.bias - weight @ mean)
    return conv


@torch.no_grad()
def score_probe(network: nn.Module, conv: nn.Conv2d, images: Tensor, labels: Tensor) -> ProbeScore:
    """Mean IoU at the full size of the images."""
    number = len(CLASSES)
    confusion = torch.zeros(number, number, dtype=torch.long)
    for x, y in zip(fused_levels(network, images), labels.split(50), strict=True):
        found = F.interpolate(conv(x), size=y.shape[-2:], mode='bilinear', align_corners=False).argmax(1)
        known = y != IGNORED
        pairs = y[known].long() * number + found[known]
        confusion += torch.bincount(pairs, minlength=number * number).view(number, number)
    both = confusion.diag().double()
    ious = both / (confusion.sum(0) + confusion.sum(1) - both)
    return ProbeScore(*(float(part.nanmean()) for part in (ious, ious[:NUM_SHAPES], ious[NUM_SHAPES:])))


def probe(file: str | None, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, seed: int = 0) -> ProbeScore:
    """Fit on one split, score on another; None: random weights of this seed."""
    network = build_features(file, seed)
    return score_probe(network, fit_probe(network, *train, seed=seed), *test)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', nargs='+', help="files with backbone and pyramid, or 'random'")
    parser.add_argument('--train', type=Path, required=True, metavar='DIR', help='generated dataset to learn from')
    parser.add_argument('--test', type=Path, required=True, metavar='DIR', help='generated dataset to score on')
    parser.add_argument('--seed', type=int, default=0, help='of random weights and of the order of pixels')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='also write the scores here')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    layout = Path('ade/ADEChallengeData2016')
    train, test = read_split(args.train / layout, 'training'), read_split(args.test / layout, 'validation')
    table = Table(title='1x1 convolution on frozen features')
    for heading in ('weights', 'mean IoU', 'shapes', 'textures'):
        table.add_column(heading, justify='left' if heading == 'weights' else 'right')
    scores = {}
    for file in args.file:
        score = probe(None if file == 'random' else file, train, test, seed=args.seed)
        scores[file] = asdict(score)
        table.add_row(file, *(f'{value:.3f}' for value in asdict(score).values()))
    Console(width=110).print(table)
    if args.out:
        args.out.write_text(json.dumps(scores, indent=1) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
