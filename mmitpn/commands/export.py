"""Write a trained model as one file for ONNX Runtime or OpenVINO (``mmitpn export``)."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='mmitpn predict SOURCE --model FILE predicts with the file.'
    )
    parser.add_argument('model', metavar='MODEL', help='config file, its name, FRAMEWORK::NAME, or nano-shapes')
    parser.add_argument('weights', nargs='?', metavar='WEIGHTS', help='checkpoint of the whole model, or its name')
    parser.add_argument('--format', default='onnx', help='onnx (default), openvino or torch')
    parser.add_argument(
        '--size', default='dynamic', metavar='HxW', help='height and width of all inputs, or dynamic (default)'
    )
    parser.add_argument('--batch', default='dynamic', metavar='N', help='images of a batch, or dynamic (default)')
    parser.add_argument('--precision', default='fp32', help='fp32 (default), fp16 (weights) or int8')
    parser.add_argument('--calibration', metavar='DIR', help='images for int8: a folder of 32 or more')
    parser.add_argument('--features', action='store_true', help='only backbone and pyramid, which give feature maps')
    parser.add_argument(
        '--grid-sample', default='native', help='native (default), or gather where GridSample gives wrong results'
    )
    parser.add_argument('-o', '--output', type=Path, metavar='FILE', help='file to write (default: name of the config)')
    parser.add_argument('--debug', action='store_true', help='show where an error was raised')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Export; returns 0, or 2 for a mistake in the command."""
    args = parse_args(argv)

    def run(args: argparse.Namespace, steps: list) -> None:
        from mmitpn.apis.export import export
        from mmitpn.deploy.runtimes import load_session

        del steps
        console, start = Console(), time.monotonic()
        with console.status('loading the model') as status:

            def report(text: str) -> None:
                console.print(text, highlight=False, soft_wrap=True)
                status.update(text)

            path = export(
                args.model, args.weights, format=args.format, output=args.output, size=args.size, batch=args.batch,
                precision=args.precision, calibration=args.calibration, features=args.features,
                grid_sample=args.grid_sample, report=report,
            )  # fmt: skip
        if args.format == 'onnx':
            from mmitpn.deploy.tensorrt_operators import check_tensorrt

            for line in check_tensorrt(path):
                report(f'TensorRT: {line}')
        info = load_session(path, trust=True).info
        table = Table(title=f'{path}, {_megabytes(path):.1f} MB', title_justify='left', show_header=False)
        size = 'any' if info.size is None else f'{info.size[0]}x{info.size[1]}'
        for name, value in (
            ('task', info.task),
            ('outputs', ', '.join(info.outputs) or 'maps of backbone and pyramid'),
            ('classes', f'{len(info.classes)}: {", ".join(info.classes[:6])}{" ..." * (len(info.classes) > 6)}'),
            ('size, batch', f'{size}, {"any" if info.batch is None else info.batch}'),
            ('precision', info.precision),
            ('seconds', f'{time.monotonic() - start:.0f}'),
        ):
            table.add_row(name, str(value))
        console.print(table)

    from mmitpn.engine.cli import run_command

    return run_command(run, args)


def _megabytes(path: Path) -> float:
    files = [path, path.with_suffix('.bin')] if path.suffix == '.xml' else [path]
    return sum(one.stat().st_size for one in files) / 1e6


if __name__ == '__main__':
    sys.exit(main())
