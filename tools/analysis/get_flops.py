"""Parameters and multiply-adds of any detector, segmentor or classifier config, part by part.

    python tools/analysis/get_flops.py configs/dino/dino-4scale_fast-itpn-t_8xb2-12e_coco.py --shape 800 1333

The model is run once on noise, with random weights: what depends on the image (the proposals of a two-stage detector)
is counted as it came out. Attention is counted, and the bilinear sampling of deformable attention where it runs in
PyTorch, four multiply-adds per sampled value; mmcv's compiled operator is invisible, so use the CPU. Norms, activations
and other elementwise operators are not counted, as in the literature.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from mmitpn.benchmark.macs import SAMPLING_OPS, count_macs
from mmitpn.engine import resolve_config, setup_environment
from mmitpn.testing.demo_inputs import build_from_config, inference_call, make_samples


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    from mmitpn.engine.cli import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config file, or one of mmdet or mmseg as mmdet::folder/name.py')
    parser.add_argument(
        '--shape', nargs='+', type=int, default=[800, 1333], metavar='N', help='height and width, or one'
    )
    parser.add_argument('--depth', type=int, default=1, help='how deep to list parts: 1 is backbone, neck, ...')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the figures')
    args = parser.parse_args(argv)
    if len(args.shape) > 2 or min(args.shape) < 1 or args.depth < 1:
        parser.error('--shape takes one or two positive numbers, --depth a positive one')
    return args


def list_parts(model: nn.Module, depth: int) -> Iterator[str]:
    """Names of the modules at most ``depth`` below the model, in its own order, the data preprocessor left out."""
    for name, _ in model.named_modules():
        if name and name.count('.') < depth and not name.startswith('data_preprocessor'):
            yield name


def count_config(
    config: str | Path, shape: tuple[int, int], *, depth: int = 1, overrides: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Count a config's model.

    Args:
        config: The config file.
        shape: Height and width of the image, in pixels.
        depth: How deep to list parts.
        overrides: Dotted key -> value.

    Returns:
        ``{'parameters', 'trainable', 'macs', 'by_op', 'parts': {name: {'parameters', 'macs'}}}``; what the model runs
        outside its parts is the part ``'(itself)'``.
    """
    torch.manual_seed(0)
    model = build_from_config(config, overrides=overrides).eval()
    samples = make_samples(model, shape, batch=1, objects=1, device=torch.device('cpu'))
    with torch.no_grad():
        report = count_macs(model, call=inference_call(model, torch.randn(1, 3, *shape), samples))
    # parameters() names a shared parameter once.
    parts = {
        name: {
            'parameters': sum(p.numel() for p in model.get_submodule(name).parameters()),
            'macs': report.of(name),
        }
        for name in list_parts(model, depth)
    }
    parts = {name: part for name, part in parts.items() if part['parameters'] or part['macs']}
    top = [part for name, part in parts.items() if '.' not in name]
    own = {
        'parameters': sum(p.numel() for p in model.parameters(recurse=False)),
        'macs': report.total - sum(part['macs'] for part in top),
    }
    if own['parameters'] or own['macs']:
        parts['(itself)'] = own
    return {
        'parameters': sum(p.numel() for p in model.parameters()),
        'trainable': sum(p.numel() for p in model.parameters() if p.requires_grad),
        'macs': report.total,
        'by_op': report.by_op,
        'parts': parts,
    }


def make_table(figures: dict[str, Any], title: str) -> Table:
    """The printed table."""
    table = Table(title=title)
    table.add_column('part')
    for heading in ('M param', 'GMAC', 'fraction'):
        table.add_column(heading, justify='right')
    for name, part in figures['parts'].items():
        indent = '  ' * name.count('.')
        fraction = part['macs'] / figures['macs'] if figures['macs'] else 0.0
        table.add_row(
            f'{indent}{name.rsplit(".", 1)[-1]}',
            f'{part["parameters"] / 1e6:.3f}',
            f'{part["macs"] / 1e9:.3f}',
            f'{fraction:.1%}',
        )
    table.add_section()
    table.add_row('total', f'{figures["parameters"] / 1e6:.3f}', f'{figures["macs"] / 1e9:.3f}', '')
    sampling = sum(figures['by_op'].get(op, 0) for op in SAMPLING_OPS)
    table.caption = f'{figures["trainable"] / 1e6:.3f} M trainable; {sampling / 1e9:.3f} GMAC are bilinear sampling'
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    setup_environment()
    shape = (args.shape[0], args.shape[-1])
    try:
        figures = count_config(resolve_config(args.config), shape, depth=args.depth, overrides=args.cfg_options)
    except (FileNotFoundError, ValueError, TypeError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    figures = {'config': str(args.config), 'shape': list(shape), **figures}
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(make_table(figures, f'{args.config} at {shape[0]}x{shape[1]}'))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=1), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
