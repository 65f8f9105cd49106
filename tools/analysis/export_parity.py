r"""Compare the predictions of exported files with those of the model that they were made from.

    python tools/analysis/export_parity.py dino_fast-itpn-nano_shapes nano-shapes.onnx nano-shapes.xml \
        --weights nano-shapes --images demo
    python tools/analysis/export_parity.py dino-4scale_fast-itpn-t_8xb2-12e_coco --random --formats onnx openvino \
        --images demo

With --random the model has random weights, spread so that scores differ, and files for any size are exported from it
first. Objects of the model and the file above --score are matched by class and IoU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.registry import MODELS, DefaultScope
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import mmitpn
from mmitpn.apis.data_sources import DataSource
from mmitpn.apis.model_loading import count_classes, remove_other_files
from mmitpn.apis.parity import Parity
from mmitpn.deploy.runtimes import FORMATS, SUFFIXES
from mmitpn.engine.cli import load_config
from mmitpn.engine.runtime import setup_environment


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', metavar='MODEL', help='config, its name, or nano-shapes')
    parser.add_argument('files', nargs='*', metavar='FILE', help='exported files')
    parser.add_argument('--weights', metavar='FILE_OR_NAME', help='checkpoint of the model')
    parser.add_argument('--random', action='store_true', help='random weights; files are exported from them')
    parser.add_argument('--formats', nargs='+', choices=FORMATS, default=FORMATS, help='of the files, with --random')
    parser.add_argument('--images', default='demo', metavar='SOURCE', help='images to compare (default: demo)')
    parser.add_argument('--score', type=float, default=0.1, help='objects above it are compared (default: 0.1)')
    parser.add_argument('--batch', type=int, default=1, help='images at once')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='with --random: override settings')
    args = parser.parse_args(argv)
    if args.random == bool(args.files):
        parser.error('give exported files, or --random')
    return args


def make_random(config: str, folder: Path, options: Sequence[str] | None) -> tuple[str, str]:
    """Write the config and a checkpoint with random weights, whose class scores are spread from 0 to 1."""
    setup_environment()
    cfg = load_config(config)
    for option in options or ():
        key, _, value = option.partition('=')
        cfg.merge_from_dict({key: int(value) if value.isdecimal() else value})
    remove_other_files(cfg.model)
    path = folder / f'{Path(cfg.filename).stem}.py'
    cfg.dump(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and any(part in name for part in ('cls_branches', 'class_embed')):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.constant_(module.bias, -3.0)
    names = tuple(f'class {index}' for index in range(count_classes(model) or 1))
    weights = folder / 'random.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': {'classes': names}}}, weights)
    return str(path), str(weights)


def main(argv: list[str] | None = None) -> int:
    """Compare; returns 0 if all files are within the limits of fp32, else 1."""
    args = parse_args(argv)
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        config, weights, files = args.model, args.weights, args.files
        if args.random:
            config, weights = make_random(args.model, Path(temporary), args.cfg_options)
            for kind in args.formats:
                suffix = next(ending for ending, name in SUFFIXES.items() if name == kind)
                start = time.monotonic()
                path = Path(temporary) / f'model{suffix}'
                mmitpn.export(config, weights, format=kind, output=path, report=console.print)
                files = [*files, str(path)]
                console.print(f'{path.name}: {time.monotonic() - start:.0f} s')
        model = mmitpn.Predictor(config, weights, device='cpu')
        exported = {name: mmitpn.Predictor(name) for name in files}
        results = {name: Parity() for name in files}
        data = [item for item in DataSource(args.images) if item.error is None]
        low = args.score / 2
        for item in track(data, console=console, description='images'):
            source = str(item.path) if item.path is not None else item.image
            (expected,) = model.predict(source, score=low)
            for name, predictor in exported.items():
                (found,) = predictor.predict(source, score=low, batch=args.batch)
                results[name].add(expected, found, score=args.score)
    table = Table()
    for heading in ('', *(f'{Path(name).name} {exported[name].model.info.precision}' for name in files), 'limit'):
        table.add_column(heading, no_wrap=True)
    for cells in zip(*(result.rows() for result in results.values()), strict=True):
        table.add_row(cells[0][0], *(value for _, value, _ in cells), cells[0][2])
    console.print(table)
    return 0 if all(result.is_equal for result in results.values()) else 1


if __name__ == '__main__':
    sys.exit(main())
