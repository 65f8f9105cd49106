"""Replace backbone and neck of a config of mmdet or mmseg by Fast-iTPN and its pre-trained pyramid.

    mmitpn swap mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco --weights FILE -o OUT.py

Backbone and neck are replaced by FastITPN and ITPNPyramid. All dependent in_channels, the mean and standard deviation
of the images, layer decay and activation checkpointing are set. OUT.py inherits from the original config. Its model is
then built, trained for one step and run once on random images. If this fails, the field and the reason are printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table

from mmitpn.checkpoint import identify, read_checkpoint
from mmitpn.checkpoint.diagnostics import explain_layout
from mmitpn.checkpoint.formats import FOREIGN
from mmitpn.config_types import type_name
from mmitpn.engine.config_utils import register_host_configs, resolve_config
from mmitpn.models.backbones import ARCHS
from mmitpn.swap import ConfigChange, plan_swap, try_model, write_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file, or FRAMEWORK::NAME')
    parser.add_argument('--arch', default='base', choices=tuple(ARCHS), help='architecture (default: base)')
    parser.add_argument('--weights', metavar='FILE', help='pre-trained weights for backbone and pyramid')
    parser.add_argument('-o', '--out', type=Path, required=True, metavar='OUT.py', help='config to write')
    parser.add_argument('--no-checkpointing', action='store_true', help='no activation checkpointing of the backbone')
    parser.add_argument('--no-trial', action='store_true', help='write the config without testing it')
    return parser.parse_args(argv)


def show(changes: list[ConfigChange], console: Console) -> None:
    """Print the changed settings."""
    table = Table()
    table.add_column('setting', no_wrap=True)
    table.add_column('before', overflow='fold')
    table.add_column('after', overflow='fold')
    for change in changes:
        before, after = (_short(value) for value in (change.before, change.after))
        table.add_row(change.key, before, after)
    console.print(table)


def _short(value: object) -> str:
    if isinstance(value, dict):
        value = {key: inner for key, inner in value.items() if key != '_delete_'}
        text = f'{type_name(value)} {len(value)} settings' if 'type' in value else str(value)
    else:
        text = str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    console = Console()
    try:
        register_host_configs()
        if args.weights and Path(args.weights).exists():
            info = identify(read_checkpoint(args.weights, mmap=True))
            if info.layout == FOREIGN:
                raise ValueError(f'--weights {args.weights}: {explain_layout(info)}')
        cfg = Config.fromfile(resolve_config(args.config))
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        options, changes = plan_swap(cfg, arch=args.arch, weights=args.weights, with_cp=not args.no_checkpointing)
        write_config(args.config, options, args.out, comment=f'{args.config} on Fast-iTPN ({args.arch})')
    except (ValueError, TypeError, KeyError, OSError) as error:
        sys.stderr.write(f'error: {args.config}: {error}\n')
        return 2
    show(changes, console)
    print(f'wrote {args.out}')
    if args.no_trial:
        return 0
    try:
        loss = try_model(args.out)
    except Exception as error:  # noqa: BLE001 - a model of another project may raise anything; it is shown to the user
        sys.stderr.write(f'error: {args.out} does not run: {type(error).__name__}: {error}\n')
        return 2
    print(f'one training step (loss {loss:.3f}) and one prediction on random images succeeded')
    return 0
