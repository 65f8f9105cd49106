r"""Cost of a pre-training step: MFU, and time relative to the backbone without masks.

    python tools/analysis/pretraining_cost.py --arch tiny --batch 16 --threads 2

A step is forward and backward in fp32, without the optimizer, with random images and targets that cost nothing instead
of a teacher. All rows and the matrix product (GEMM) run in turns in one process; MFU is relative to that product. The
last column is the time relative to a step of the whole backbone of the same family, without masks, pyramid and
prediction. The recipe pixel has a decoder of 8 blocks of 512 channels over all patches for every size of the backbone.
Its step is also shown without the decoder, where the saving by masking is visible.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmitpn.benchmark.macs import count_macs
from mmitpn.benchmark.speed import MatmulPeak, interleave
from mmitpn.models.backbones import ARCHS, ITPN, FastITPN
from mmitpn.models.cpu_inference import keep_freed_memory
from mmitpn.models.necks import ITPNPyramid
from mmitpn.models.selfsup import ITPNPretrain
from mmitpn.models.selfsup.masking import random_masks, visible_ids
from mmitpn.models.selfsup.prediction_heads import PixelHead

TEACHER = 'random'
ROWS = (
    ('fast', FastITPN, 0.4),
    ('mfm', FastITPN, 0.4),
    ('hog', FastITPN, 0.75),
    ('clip', ITPN, 0.4),
    ('pixel', ITPN, 0.75),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='tiny', choices=tuple(ARCHS))
    parser.add_argument('--form', nargs='+', default=['fast', 'pixel'], choices=[row[0] for row in ROWS])
    parser.add_argument('--size', type=int, default=224, help='side of the images, in pixels')
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--threads', type=int, help="of the CPU; default: torch's own choice")
    parser.add_argument('--seconds', type=float, default=60.0, help='minimum time for all rows')
    parser.add_argument('--rounds', type=int, default=3, help='minimum number of runs per row')
    return parser.parse_args(argv)


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One forward and backward pass."""

    def step() -> None:
        loss().backward()
        model.zero_grad(set_to_none=True)

    return step


def squares(maps: Sequence[Tensor]) -> Tensor:
    """A scalar to run the backward pass from where there is no loss."""
    return sum(x.float().square().mean() for x in maps)


def build(part: str, family: type, ratio: float, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], None]]:
    """A network and a step of it: of a recipe, of ``'encoder'`` (pixel without its decoder) or of ``'backbone'``."""
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size)
    relative = {'relative_position': 'table'} if part == 'clip' else {}
    backbone = family(args.arch, img_size=args.size, **relative)
    if part == 'backbone':
        return backbone, step_of(backbone, lambda: squares(backbone(images)))
    neck = ITPNPyramid(backbone.out_channels, num_outs=3, kind='fast' if family is FastITPN else 'linear')
    if part == 'encoder':
        both = nn.ModuleList([backbone, neck])
        masks = random_masks(len(images), backbone.grid, ratio, images.device)
        return both, step_of(both, lambda: squares(PixelHead.encode(backbone, neck, images, visible_ids(masks))))
    teacher = TEACHER if part in ('fast', 'clip') else None
    model = ITPNPretrain(backbone, neck, form=part, teacher=teacher, mask_ratio=ratio).train()
    return model, step_of(model, lambda: sum(model.loss(images).values()))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [row for row in ROWS if row[0] in args.form]
    families = list(dict.fromkeys(family for _, family, _ in rows))
    named = [(f'form {form} ({family.__name__})', form, family, ratio) for form, family, ratio in rows]
    masked = [(family, ratio) for form, family, ratio in rows if form == 'pixel']
    named += [('form pixel without its decoder', 'encoder', *both) for both in masked]
    named += [(f'{family.__name__} alone, not masked', 'backbone', family, 0.0) for family in families]
    built = [build(part, family, ratio, args) for _, part, family, ratio in named]
    macs = [count_macs(model, call=step).total for model, step in built]
    gemm = MatmulPeak(torch.device('cpu'), torch.float32)
    timings = interleave([step for _, step in built], gemm, seconds=args.seconds, min_rounds=args.rounds)
    table = Table(title=f'a training step: {args.arch}, {args.batch} images of {args.size} pixels')
    for heading in ('step', 'GMAC', 'MFU', 'time / backbone alone'):
        table.add_column(heading, justify='left' if heading == 'step' else 'right')
    whole = dict(zip(families, timings[-len(families) :], strict=True))
    for (name, _, family, _), count, timing in zip(named, macs, timings, strict=True):
        mfu = count / timing.median / gemm.macs_per_second
        ratio = timing.median / whole[family].median
        table.add_row(name, f'{count / 1e9:.0f}', f'{mfu:.0%}', f'{ratio:.2f}')
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


if __name__ == '__main__':
    sys.exit(main())
