r"""Speed, memory and multiply-adds of the backbone, the pyramid and whole detectors, and MFU on this machine.

    python tools/analysis/benchmark.py --arch base --size 224 1024 --part backbone pyramid
    python tools/analysis/benchmark.py --part detector --config configs/dino/dino-4scale_fast-itpn-t_8xb2-12e_coco.py
    python tools/analysis/benchmark.py --part detector --predict --size 512 \
        --config configs/upernet/upernet_fast-itpn-b_8xb2-160k_ade20k-512x512.py
    python tools/analysis/benchmark.py --arch base --size 1024 --json now.json --compare before.json

Peak memory is that of a fresh process for each row, including its imports. Speed is measured in another process, where
all parts of one size and the matrix product (GEMM) run in turns, so that other load affects them equally; MFU is the
ratio of the medians. GMAC counts multiply-adds including attention; for a training step it includes the backward pass
and what checkpointing recomputes.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mmitpn.benchmark.case import DTYPES, PARTS, BenchmarkCase, parse_size
from mmitpn.benchmark.speed import describe_machine
from mmitpn.benchmark.worker import run_job
from mmitpn.models.backbones import ARCHS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', nargs='+', choices=PARTS, default=['backbone'], help='what to measure')
    parser.add_argument('--arch', nargs='+', choices=list(ARCHS), default=['base'], help='architecture of the backbone')
    parser.add_argument('--config', nargs='+', default=[], help='configs of whole models, for --part detector')
    parser.add_argument(
        '--size', nargs='+', type=parse_size, default=[(224, 224)], metavar='HxW', help='size of the images'
    )
    parser.add_argument('--batch', type=int, default=1, help='number of images')
    parser.add_argument('--dtype', nargs='+', choices=list(DTYPES), default=['fp32'], help='bf16 means autocast')
    parser.add_argument('--train', action='store_true', help='a training step: forward and backward')
    parser.add_argument('--predict', action='store_true', help='predictions of segmentors, with their sliding window')
    parser.add_argument('--with-cp', action='store_true', help='checkpoint every module that has with_cp')
    parser.add_argument('--objects', type=int, default=8, help='objects per image when a detector is trained')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, help="of the CPU; default: torch's own choice")
    parser.add_argument('--seconds', type=float, default=20.0, help='minimum time for each size of each arch')
    parser.add_argument('--rounds', type=int, default=5, help='minimum number of runs of each row')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write all figures, including every single time')
    parser.add_argument('--compare', type=Path, metavar='OLD', help='an earlier --json to compare with')
    args = parser.parse_args(argv)
    if bool(args.config) != ('detector' in args.part):
        parser.error('--part detector and --config go together')
    if args.predict and args.train:
        parser.error('--predict and --train exclude each other')
    if args.with_cp and not args.train:
        parser.error('--with-cp changes a training step only; add --train')
    if args.batch < 1 or args.rounds < 1 or args.seconds <= 0 or (args.threads is not None and args.threads < 1):
        parser.error('--batch, --rounds, --seconds and --threads must be positive')
    if args.compare is not None and not args.compare.is_file():
        parser.error(f'no file {args.compare} to compare with')
    return args


def group_cases(args: argparse.Namespace) -> list[list[BenchmarkCase]]:
    """The rows of the table, grouped by what is timed in turns."""
    shared = {
        'batch': args.batch,
        'train': args.train,
        'predict': args.predict,
        'with_cp': args.with_cp,
        'objects': args.objects,
        'device': args.device,
    }
    parts = [part for part in args.part if part != 'detector']
    groups = []
    for dtype in args.dtype:
        for arch, size in product(args.arch, args.size):
            groups += [[BenchmarkCase(part, size, arch=arch, dtype=dtype, **shared) for part in parts]] if parts else []
        for config, size in product(args.config, args.size):
            groups.append([BenchmarkCase('detector', size, config=config, dtype=dtype, **shared)])
    return groups


def mode_of(case: BenchmarkCase) -> str:
    """The mode that a row measures."""
    if case.train:
        return 'training with_cp' if case.with_cp else 'training'
    return 'prediction' if case.predict else 'inference'


def measure(group: list[BenchmarkCase], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All figures of a group, one dict per row."""
    memory = [run_job('memory', [case], threads=args.threads) for case in group]
    speed = run_job('speed', group, threads=args.threads, seconds=args.seconds, min_rounds=args.rounds)
    machine = {key: value for key, value in speed.items() if key != 'cases'}
    return [
        {
            'name': case.name,
            'size': list(case.size),
            'batch': case.batch,
            'dtype': case.dtype,
            'mode': mode_of(case),
            **memory_row,
            **speed_row,
            'gemm': machine,
        }
        for case, memory_row, speed_row in zip(group, memory, speed['cases'], strict=True)
    ]


def _key(row: dict[str, Any]) -> tuple:
    return row['name'], tuple(row['size']), row['batch'], row['dtype'], row['mode']


def peak_bytes(row: dict[str, Any]) -> int:
    """Peak memory of the GPU if one was used, else of the process."""
    return row.get('cuda_peak_bytes', row['peak_bytes'])


def make_table(rows: list[dict[str, Any]], old: list[dict[str, Any]] | None = None) -> Table:
    """The printed table; with ``old``, the change in time and memory in each row."""
    before = {_key(row): row for row in old or []}
    table = Table(title=f'{rows[0]["mode"]}, batch {rows[0]["batch"]}')
    table.add_column('what', overflow='fold')
    for heading in ('size', 'type', 'M param', 'GMAC', 'images/s', 'ms', 'peak memory', 'MFU'):
        table.add_column(heading, justify='right')
    if old is not None:
        table.add_column('time, memory to before', justify='right')
    for row in rows:
        fractions = row['gemm_share_by_round']
        cells = [
            row['name'],
            'x'.join(map(str, row['size'])),
            row['dtype'],
            f'{row["parameters"] / 1e6:.2f}',
            f'{row["macs"] / 1e9:.2f}',
            f'{row["images_per_second"]:.3g}',
            f'{row["median_seconds"] * 1e3:.4g}',
            f'{peak_bytes(row) / 1e9:.2f} GB',
            f'{row["gemm_share"]:.0%} ({min(fractions):.0%} to {max(fractions):.0%})',
        ]
        if old is not None:
            was = before.get(_key(row))
            cells.append(
                'not there'
                if was is None
                else f'{row["median_seconds"] / was["median_seconds"]:.2f}, {peak_bytes(row) / peak_bytes(was):.2f}'
            )
        table.add_row(*cells)
    return table


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 130)
    rows: list[dict[str, Any]] = []
    for group in group_cases(args):
        with console.status(f'{", ".join(case.name for case in group)} at {"x".join(map(str, group[0].size))}'):
            try:
                rows += measure(group, args)
            except RuntimeError as error:
                console.print(str(error), style='red', markup=False)
                return 1
    old = json.loads(args.compare.read_text(encoding='utf-8'))['rows'] if args.compare else None
    console.print(make_table(rows, old))
    gemm = rows[-1]['gemm']
    console.print(
        f'GEMM peak {gemm["gemm_macs_per_second"] / 1e9:.1f} GMAC/s'
        f' ({2 * gemm["gemm_macs_per_second"] / 1e9:.0f} GFLOP/s), {gemm["threads"]} threads, torch {gemm["torch"]}',
        highlight=False,
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {'command': sys.argv if argv is None else argv, 'machine': describe_machine(), 'rows': rows}
        args.json.write_text(json.dumps(report, indent=1), encoding='utf-8')
        console.print(f'written: {args.json}', markup=False, highlight=False)
    return 0


if __name__ == '__main__':
    sys.exit(main())
