r"""Checks and speed of every model on a GPU, as Markdown and JSON.

    python tools/analysis/gpu_report.py --out gpu_report              # everything
    python tools/analysis/gpu_report.py --out gpu_report --quick      # at most 9 minutes, the most important first
    python tools/analysis/gpu_report.py --out gpu_report --only attention tokens
    python tools/analysis/gpu_report.py --out report_cpu --device cpu # in miniature, on a CPU

Checks compare losses, gradients and predictions with those of the CPU, in fp32, with the same weights, inputs and
random numbers. Speed is measured with CUDA events after untimed runs; MFU is the fraction of the largest rate of matrix
products that this card reached. A second run with the same --out measures what is missing or failed. A row that cannot
be measured, without mmdet for example, has the reason. docs/gpu.md has the figures to compare with.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import psutil
import torch
from rich.console import Console

from mmitpn.benchmark.gpu.plan import plan_rows
from mmitpn.benchmark.gpu.report import SECTIONS, GpuReport

QUICK_MINUTES = 9.0
LAST_SECONDS = 10.0  # what a process needs to end, which --quick and --minutes include


def main(argv: list[str] | None = None, *, started: float | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None: those of this process.
        started: Time that the limit counts from; None: now.

    Returns:
        Exit status: 0, or 1 if a row failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder of report.json, report.md and errors.log')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda', help='cpu: in miniature')
    parser.add_argument('--only', nargs='+', choices=SECTIONS, default=list(SECTIONS), help='sections')
    parser.add_argument('--quick', action='store_true', help=f'the same as --minutes {QUICK_MINUTES:g}')
    parser.add_argument('--minutes', type=float, help='end after this time; what is left out is named')
    args = parser.parse_args(argv)
    if args.quick and args.minutes is not None:
        parser.error(f'--quick is --minutes {QUICK_MINUTES:g}, and --minutes {args.minutes:g} is given: leave one out')
    if args.minutes is not None and args.minutes <= 0:
        parser.error(f'--minutes is {args.minutes:g}; give more than 0')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('torch sees no CUDA device; run it on a machine with one, or with --device cpu')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    minutes = QUICK_MINUTES if args.quick else args.minutes
    deadline = None if minutes is None else (started or time.time()) + 60 * minutes - LAST_SECONDS
    device = torch.device(args.device)
    try:
        report = GpuReport(args.out, device, Console(width=160), deadline=deadline)
    except ValueError as error:
        parser.error(str(error))
    report.run(plan_rows(device, report.peak, sections=tuple(args.only)))
    failed = report.failed
    report.console.print(f'{len(report.rows)} rows, {len(failed)} failed; written: {args.out}', markup=False)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main(started=psutil.Process().create_time()))
