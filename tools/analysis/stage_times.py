r"""Which part of a detector or segmentor its time goes into: backbone, decoders, post-processing.

    python tools/analysis/stage_times.py CONFIG [CONFIG ...] --size 512 800x1333

One prediction on made-up pictures with fresh weights, from the normalised picture to the results. Fresh weights find
as many objects as test_cfg allows, so post-processing has all there can be to do.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product

import torch
from rich.console import Console
from rich.table import Table

from mmitpn.analysis.cases import Case, build, parse_size
from mmitpn.analysis.stages import STAGES, stage_shares
from mmitpn.models.cpu_inference import keep_freed_memory


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='+', metavar='CONFIG', help='config files')
    parser.add_argument(
        '--size', nargs='+', type=parse_size, default=[(512, 512)], metavar='HxW', help='of the pictures'
    )
    parser.add_argument('--rounds', type=int, default=3, help='predictions of each (default: 3)')
    parser.add_argument('--threads', type=int, help="of the CPU; default: torch's own choice")
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    args = parse_args(argv)
    if args.device == 'cpu':
        keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    table = Table(title='share of the time of a prediction, one picture')
    table.add_column('config', overflow='fold')
    for heading in ('size', *STAGES, 'rest'):
        table.add_column(heading, justify='right')
    for config, size in product(args.config, args.size):
        model, step = build(Case('detector', size, config=config, predict=True, device=args.device))
        shares = stage_shares(model, step, rounds=args.rounds)
        cells = [f'{shares[stage]:.1%}' if stage in shares else '' for stage in (*STAGES, 'rest')]
        table.add_row(config, 'x'.join(map(str, size)), *cells)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return 0


if __name__ == '__main__':
    sys.exit(main())
