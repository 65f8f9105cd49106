#!/usr/bin/env python3
"""Say what a checkpoint file is and how to use it in a config."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from mmitpn.checkpoint import FileInfo, convert_from_authors, identify, read_checkpoint
from mmitpn.checkpoint.diagnostics import backbone_settings
from mmitpn.checkpoint.formats import AUTHORS, OURS, part_of
from mmitpn.weights import resolve_weights


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', help='path or address of a checkpoint, or a name: fast-itpn-b')
    parser.add_argument('--prefix', help="look only at the weights below this prefix, such as 'teacher.'")
    parser.add_argument(
        '--allow-objects',
        action='store_true',
        help='also read a pickle that holds unknown objects; inert stand-ins take their place, nothing is executed',
    )
    return parser.parse_args()


def describe(file: str, info: FileInfo) -> list[tuple[str, str]]:
    """What the file is, as (label, text) lines."""
    path = Path(resolve_weights(file))
    size = f' ({path.stat().st_size / 1e6:.1f} MB)' if path.is_file() else ''
    rows = [('file', f'{file}{size}'), ('layout', f'{info.layout}: {info.title}')]
    if info.wrappers or info.prefixes:
        rows.append(('wrapped in', ' > '.join(info.wrappers) or 'nothing'))
        rows.append(('prefixes', ' '.join(info.prefixes) or 'none'))
    rows.append(('dtype', info.dtype or 'no floating-point weights'))
    params, others = Counter(), Counter()
    if info.layout in (OURS, *AUTHORS) and (info.arch or info.pyramid):
        weights = convert_from_authors(info)
        for name, value in weights.state.items():
            params['pyramid' if part_of(name) == 'pyramid' else 'backbone'] += value.numel()
        others.update(name.split('.')[0] for name in weights.ignored + weights.unexpected)
    if info.arch:
        scale = 'with layer scale' if info.layer_scale else 'without layer scale'
        grid = f'{info.grid[0]}x{info.grid[1]}' if info.grid else str(info.positions)
        relative = f', relative positions ({info.relative_position})' if info.relative_position else ''
        size = f'{params["backbone"] / 1e6:.2f} M'
        rows.append(('backbone', f'{info.family} {info.arch}, {size}, {scale}, {grid} positions{relative}'))
    if info.pyramid:
        rows.append(('pyramid', f'{info.pyramid}, {params["pyramid"] / 1e6:.2f} M'))
    others.update(name.split('.')[0] for name in info.rest)
    if not params:
        others.update(name.split('.')[0] for name in info.body)
    if others:
        rows.append(('other', ', '.join(f'{name} ({count} weights)' for name, count in others.most_common(12))))
    return rows


def usage(file: str, info: FileInfo) -> list[str]:
    """Lines for a config that uses the file."""
    if info.layout not in (OURS, *AUTHORS):
        return []
    lines, init = [], f"init_cfg=dict(type='Pretrained', checkpoint={file!r})"
    if info.arch:
        lines.append(f'backbone=dict({backbone_settings(info)}, {init})')
    if info.pyramid:
        pyramid, channels = info.pyramid, tuple(info.pyramid.embed_dim // part for part in (4, 2, 1))
        extra = f', kind={pyramid.kind!r}' if pyramid.kind != 'fast' else ''
        extra += f', depth={pyramid.depth}' if pyramid.depth != 1 else ''
        if pyramid.hidden_channels != pyramid.default_hidden:
            extra += f', hidden_channels={pyramid.hidden_channels}'
        sizes = f'in_channels={channels}, out_channels={pyramid.out_channels}{extra}'
        lines.append(f"neck=dict(type='mmitpn.ITPNPyramid', {sizes}, {init})")
    if info.layout == OURS and info.rest:
        lines.append(f'load_from = {file!r}  # the whole model, heads too')
    return lines


def main() -> int:
    """Print what the file is."""
    args = parse_args()
    try:
        info = identify(read_checkpoint(args.file, allow_objects=args.allow_objects or None), prefix=args.prefix)
        rows = describe(args.file, info)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for label, text in rows:
        print(f'{label:<11}{text}')
    lines = usage(args.file, info)
    print('\nIn a config:' if lines else '\nNo config of this library can use it.')
    for line in lines:
        print(f'  {line}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
