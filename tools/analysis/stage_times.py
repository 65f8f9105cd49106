r"""Fraction of the time that each part of a detector or segmentor takes: backbone, decoders, post-processing.

    python tools/analysis/stage_times.py CONFIG [CONFIG ...] --size 512 800x1333

Measures predictions on random images with random weights, from the normalized image to the results. With random weights
a model predicts the maximum number of objects that test_cfg allows, so post-processing takes its longest possible time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from operator import attrgetter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from mmitpn.benchmark.case import BenchmarkCase, build_case, parse_size
from mmitpn.models.cpu_inference import keep_freed_memory

# Stage -> methods. A model has some of them; the times of one stage are summed.
STAGES: Mapping[str, tuple[str, ...]] = {
    'backbone': ('backbone.forward',),
    'neck': ('neck.forward',),
    'pixel decoder': ('panoptic_head.pixel_decoder.forward', 'decode_head.pixel_decoder.forward'),
    'encoder': ('encoder.forward',),
    'decoder': ('panoptic_head.predictor.forward', 'decode_head.predictor.forward', 'decoder.forward'),
    'post-processing': ('panoptic_fusion_head.predict', 'bbox_head.predict_by_feat'),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='+', metavar='CONFIG', help='config files')
    parser.add_argument(
        '--size', nargs='+', type=parse_size, default=[(512, 512)], metavar='HxW', help='size of the images'
    )
    parser.add_argument('--rounds', type=int, default=3, help='predictions of each config (default: 3)')
    parser.add_argument('--threads', type=int, help="of the CPU; default: torch's own choice")
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    return parser.parse_args(argv)


def now(device: torch.device) -> float:
    """Time in seconds, after synchronizing with the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def timed_method(owner: Any, name: str, add: Callable[[float], None], device: torch.device) -> Iterator[None]:
    """Pass the time of every call of one object's method to a function.

    Unlike spans of torch's profiler this has no overhead inside the method, which would distort stages of many small
    operators.
    """
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = now(device)
        try:
            return method(*args, **kwargs)
        finally:
            add(now(device) - start)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        delattr(owner, name)


def stage_fractions(model: nn.Module, call: Callable[[], Any], *, rounds: int = 3) -> dict[str, float]:
    """Measure the fraction of a call's time that each stage of a model takes.

    Args:
        model: A detector or segmentor.
        call: Runs the model once, such as a prediction.
        rounds: Number of timed calls, after one warm-up call.

    Returns:
        Stage -> fraction from 0 to 1, for the stages that the model has, and ``'rest'``.
    """
    device = next(model.parameters()).device
    seconds: dict[str, float] = {}
    call()
    with ExitStack() as stack:
        for stage, paths in STAGES.items():
            for path in paths:
                owner_path, _, name = path.rpartition('.')
                try:
                    owner = attrgetter(owner_path)(model)
                except AttributeError:
                    continue
                seconds[stage] = 0.0

                def add(elapsed: float, stage: str = stage) -> None:
                    seconds[stage] += elapsed

                stack.enter_context(timed_method(owner, name, add, device))
        start = now(device)
        for _ in range(rounds):
            call()
        total = now(device) - start
    fractions = {stage: elapsed / total for stage, elapsed in seconds.items()}
    return {**fractions, 'rest': 1 - sum(fractions.values())}


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    args = parse_args(argv)
    if args.device == 'cpu':
        keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    table = Table(title='fraction of the time of a prediction, one image')
    table.add_column('config', overflow='fold')
    for heading in ('size', *STAGES, 'rest'):
        table.add_column(heading, justify='right')
    for config, size in product(args.config, args.size):
        case = BenchmarkCase('detector', size, config=config, predict=True, device=args.device)
        fractions = stage_fractions(*build_case(case), rounds=args.rounds)
        cells = [f'{fractions[stage]:.1%}' if stage in fractions else '' for stage in (*STAGES, 'rest')]
        table.add_row(config, 'x'.join(map(str, size)), *cells)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    return 0


if __name__ == '__main__':
    sys.exit(main())
