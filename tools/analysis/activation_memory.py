"""Compare activation memory and gradients of one training step without and with activation checkpointing.

    python tools/analysis/activation_memory.py --size 512
    python tools/analysis/activation_memory.py --config my_config.py --size 800x1333 --batch 2

Activation memory is that of the tensors saved by autograd when the forward pass of the losses has ended: distinct
storages, without parameters and buffers. Checkpointing is enabled in every module that supports it: the backbone, the
pyramid and DINO's encoder and decoder of this project, mmdet's ResNet and others; --only selects some of them. Both
steps start from the same weights, images and random state.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mmitpn.benchmark.case import parse_size, set_checkpointing
from mmitpn.benchmark.memory import StepReport, gradient_difference, measure_step
from mmitpn.engine import resolve_config, setup_environment
from mmitpn.testing.demo_inputs import build_from_config, loss_call, make_samples

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/dino/dino-4scale_fast-itpn-t_8xb2-12e_coco.py'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    from mmitpn.engine.cli import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default=str(CONFIG), help='default: DINO with FastITPN-T')
    parser.add_argument(
        '--size', type=parse_size, default=(512, 512), metavar='HxW', help='size of the images in pixels'
    )
    parser.add_argument('--batch', type=int, default=1, help='number of images')
    parser.add_argument('--objects', type=int, default=8, help='objects per image')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--only', nargs='+', metavar='PART', help='checkpoint only these parts, for example backbone')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the figures to a file')
    args = parser.parse_args(argv)
    if min(args.batch, args.objects) < 1:
        parser.error(f'--batch is {args.batch} and --objects {args.objects}; give integers of at least 1')
    return args


def compare(args: argparse.Namespace) -> tuple[StepReport, StepReport, list[str]]:
    """One step without checkpointing, one with it, and the names of the checkpointed modules."""
    torch.manual_seed(args.seed)
    model = build_from_config(resolve_config(args.config), overrides=args.cfg_options).to(args.device).train()
    inputs = torch.randn(args.batch, 3, *args.size, device=args.device)
    samples = make_samples(model, args.size, batch=args.batch, objects=args.objects, device=torch.device(args.device))
    # Buffers (such as BatchNorm's statistics) must not differ between the two steps.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    reports = []
    switched: list[str] = []
    for on in (False, True):
        switched = set_checkpointing(model, on=False)
        if on:
            switched = [
                f'{part}.{name}'.strip('.')
                for part in args.only or ['']
                for name in set_checkpointing(model.get_submodule(part), on=True)
            ]
        if not switched:
            raise ValueError(f'nothing in {", ".join(args.only or [args.config])} can be checkpointed')
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        # Denoising queries, drop path and dropout draw from all three.
        random.seed(args.seed)
        np.random.seed(args.seed)  # noqa: NPY002 - mmdet and mmseg draw from the global generator
        torch.manual_seed(args.seed)
        reports.append(measure_step(model, loss_call(model, inputs, samples)))
    return reports[0], reports[1], switched


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    setup_environment()
    try:
        without, with_cp, switched = compare(args)
    except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    difference, where = gradient_difference(without.gradients, with_cp.gradients)
    saved = 1 - with_cp.activation_bytes / without.activation_bytes
    figures = {
        'config': str(args.config),
        'size': list(args.size),
        'batch': args.batch,
        'bytes_without': without.activation_bytes,
        'bytes_with_cp': with_cp.activation_bytes,
        'saved': saved,
        'gradients_compared': len(without.gradients),
        'gradient_difference': difference,
        'gradient_difference_at': where,
        'loss_without': without.loss,
        'loss_with_cp': with_cp.loss,
        'checkpointed_modules': switched,
    }
    table = Table(title=f'{Path(args.config).stem}, {"x".join(map(str, args.size))}, batch {args.batch}')
    table.add_column('')
    table.add_column('activations', justify='right')
    table.add_column('loss', justify='right')
    table.add_row('without checkpointing', f'{without.activation_bytes / 1e6:.1f} MB', f'{without.loss:.6f}')
    table.add_row('with', f'{with_cp.activation_bytes / 1e6:.1f} MB', f'{with_cp.loss:.6f}')
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    console.print(
        f'saved: {saved:.1%} (recomputed: {", ".join(switched)}); {len(without.gradients)} gradients,'
        f' largest difference {difference:.2g} of the largest value of its parameter{f" ({where})" if where else ""}',
        highlight=False,
        markup=False,
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
