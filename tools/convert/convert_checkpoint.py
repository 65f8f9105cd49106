#!/usr/bin/env python3
"""Convert a Fast-iTPN or iTPN checkpoint between the authors' layout and ours, or to another type or file format.

Training needs no conversion: init_cfg takes the authors' files as they are.
"""

from __future__ import annotations

import argparse
import sys
from io import BytesIO
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from mmitpn.atomic import write_atomic
from mmitpn.checkpoint import FileInfo, convert_from_authors, convert_to_authors, identify, read_checkpoint
from mmitpn.checkpoint.diagnostics import explain_layout, some
from mmitpn.checkpoint.formats import AUTHORS, OURS, part_of

DTYPES = {'fp16': torch.float16, 'fp32': torch.float32}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN', help='path or address of a checkpoint')
    parser.add_argument('target', metavar='OUT', type=Path, help='file to write: .pth, or .safetensors')
    parser.add_argument('--to', choices=('ours', 'authors'), default='ours', help='layout of OUT (default: ours)')
    parser.add_argument('--dtype', choices=tuple(DTYPES), help='type of the floating-point weights (default: as in IN)')
    parser.add_argument('--prefix', help="take only the weights below this prefix, such as 'teacher.'")
    parser.add_argument('--drop-heads', action='store_true', help='keep nothing but backbone and pyramid')
    parser.add_argument('--force', action='store_true', help='overwrite OUT')
    parser.add_argument(
        '--allow-objects',
        action='store_true',
        help='also read a pickle that holds unknown objects; inert stand-ins take their place, nothing is executed',
    )
    return parser.parse_args()


def convert(info: FileInfo, to: str, *, drop_heads: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in the layout asked for, and the names in the file that are left out.

    Ours is named as a detector names it (``backbone.``, ``neck.``); heads of our own detectors are included unless
    ``drop_heads``.
    """
    if info.layout not in (OURS, *AUTHORS):
        raise ValueError(explain_layout(info))
    weights = convert_from_authors(info)
    if to == 'authors':
        return convert_to_authors(weights.state), weights.ignored + weights.unexpected + list(info.rest)
    named = {('neck.' if part_of(name) == 'pyramid' else 'backbone.') + name: v for name, v in weights.state.items()}
    rest = info.rest if info.layout == OURS and not drop_heads else {}
    left_out = weights.ignored + weights.unexpected + ([] if rest else list(info.rest))
    return {**named, **rest}, left_out


def write(state: dict[str, Tensor], target: Path, *, to: str) -> None:
    """Write the file atomically, so that a broken one never has the final name."""
    if target.suffix == '.safetensors':
        tensors = {name: value.contiguous() for name, value in state.items()}
        content = safetensors.torch.save(tensors, metadata={'format': 'pt'})
    else:
        buffer = BytesIO()
        torch.save({'model' if to == 'authors' else 'state_dict': state}, buffer)
        content = buffer.getvalue()
    write_atomic(target, content)


def main() -> int:
    """Convert."""
    args = parse_args()
    try:
        if args.target.exists() and not args.force:
            raise ValueError(f'{args.target} exists: give another name, or --force to overwrite it')
        info = identify(read_checkpoint(args.source, allow_objects=args.allow_objects or None), prefix=args.prefix)
        state, left_out = convert(info, args.to, drop_heads=args.drop_heads)
        if args.dtype:
            state = {n: v.to(DTYPES[args.dtype]) if v.is_floating_point() else v for n, v in state.items()}
        write(state, args.target, to=args.to)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.source}: {info.description}')
    if left_out:
        print(f'left out: {some(left_out, 5)}')
    print(f'wrote {args.target}: {len(state)} weights, {args.target.stat().st_size / 1e6:.1f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
