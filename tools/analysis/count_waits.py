"""Count how often the host waits for the device in a training step and in a prediction, without a GPU.

    python tools/analysis/count_waits.py configs/quickstart/dino_fast-itpn-nano_shapes.py --size 128x160
    python tools/analysis/count_waits.py CONFIG... --batch 4 --objects 3 0 7 1 --lines 20

The steps run on a simulated accelerator (mmitpn.testing.simulated_device, torch 2.10 or later): from the normalized
batch, with its ground truth, on the device to losses or results there. Waits are for results that the host needs
(item, nonzero, copies to the host); copies are those from the host to the device, for which it waits too unless the
memory is pinned. Below each table are the lines of code that cause them. --device cuda counts on a GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from mmitpn.benchmark.case import parse_size
from mmitpn.engine import resolve_config, setup_environment
from mmitpn.testing.demo_inputs import build_from_config, make_samples, quiet_logger, set_training_progress
from mmitpn.testing.host_waits import Counts, count_steps, counted_device


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    from mmitpn.engine.cli import DictAction

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument(
        '--size', type=parse_size, default=(128, 128), metavar='HxW', help='size of the images in pixels'
    )
    parser.add_argument('--batch', type=int, default=2, help='number of images')
    parser.add_argument('--objects', type=int, nargs='+', default=[3], help='objects per image, or of each image')
    parser.add_argument('--device', choices=['sim', 'cuda'], default='sim')
    parser.add_argument('--lines', type=int, default=10, help='lines of code shown per phase')
    parser.add_argument('--first', action='store_true', help='count the first steps, in which constants are made')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings')
    args = parser.parse_args(argv)
    if args.batch < 1 or min(args.objects) < 0:
        parser.error(f'--batch is {args.batch} and --objects {args.objects}; give a batch of at least 1, objects of 0')
    if len(args.objects) not in {1, args.batch}:
        parser.error(f'--objects has {len(args.objects)} numbers; give one, or one for each of the {args.batch} images')
    return args


def count_config(config: str, args: argparse.Namespace) -> dict[str, Counts]:
    """Counts of the model of a config, by phase."""
    torch.manual_seed(0)
    model = build_from_config(resolve_config(config), overrides=args.cfg_options)
    set_training_progress()
    objects = args.objects if len(args.objects) == args.batch else args.objects * args.batch
    with counted_device(args.device) as counters, quiet_logger():
        model = model.to(counters.device)
        inputs = torch.randn(args.batch, 3, *args.size).to(counters.device)
        samples = [
            sample
            for number in objects
            for sample in make_samples(model, args.size, batch=1, objects=number, device=counters.device)
        ]
        return count_steps(model, inputs, samples, counters, warm_up=not args.first)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    setup_environment()
    for config in args.configs:
        try:
            found = count_config(config, args)
        except (FileNotFoundError, ValueError, TypeError, RuntimeError) as error:
            sys.stderr.write(f'error: {error}\n')
            return 2
        print(f'{Path(config).stem}: {args.batch} x {"x".join(map(str, args.size))}, objects {args.objects}')
        for phase, counts in found.items():
            print(
                f'  {phase}: {counts.waits.total()} waits, {counts.copies.total()} copies,'
                f' {counts.num_operators} operators'
            )
            for where, number in counts.where.most_common(args.lines):
                print(f'    {number:4d}  {where}')
            if len(counts.where) > args.lines:
                print(f'          and {len(counts.where) - args.lines} more lines')
    return 0


if __name__ == '__main__':
    sys.exit(main())
