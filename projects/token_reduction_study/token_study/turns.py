"""The process that times settings of one network in turns (``python -m token_study.turns JOB.json RESULT.json``).

As :mod:`mmitpn.benchmark.worker`, but with one network for all cases: only its token reduction changes between them,
so that dozens of settings of a large network fit into memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import token_study  # noqa: F401 - registers the methods
from mmitpn.benchmark import worker

REDUCTIONS = ('token_migration', 'token_gathering')


def measure_turns(job: Mapping[str, Any]) -> dict[str, Any]:
    """Times of backbone and pyramid with every token reduction, in turns.

    Args:
        job: ``cases`` of part ``'backbone+pyramid'``, which differ in the token reduction of their ``backbone`` only;
            ``pyramid`` (arguments of ``ITPNPyramid``), ``seconds`` and ``min_rounds``, and ``threads`` or None.

    Returns:
        ``cases``: for each ``macs`` (multiply-adds) and ``seconds`` (of every round); ``threads`` and ``torch``.

    Raises:
        ValueError: If the cases differ in something else.
    """
    cases = worker.load_cases(job)
    import torch
    from torch import nn

    from mmitpn import FastITPN, ITPNPyramid
    from mmitpn.benchmark.macs import count_macs
    from mmitpn.benchmark.speed import MatmulPeak, interleave

    networks = {
        repr((case.arch, case.size, case.batch, case.dtype, case.train, _network(case.backbone))) for case in cases
    }
    if len(networks) != 1 or cases[0].part != 'backbone+pyramid' or cases[0].dtype != 'fp32' or cases[0].train:
        raise ValueError(
            f'the cases are of {len(networks)} networks, the first {cases[0]}; give cases of backbone+pyramid in fp32'
            f' for inference that differ in {" and ".join(REDUCTIONS)} only'
        )
    first = cases[0]
    backbone = FastITPN(first.arch, **_network(first.backbone))
    model = (
        nn.Sequential(backbone, ITPNPyramid(backbone.out_channels, **job.get('pyramid', {}))).to(first.device).eval()
    )
    images = torch.randn(first.batch, 3, *first.size, device=first.device)

    def call_with(reduction: nn.Module | None) -> Callable[[], None]:
        def call() -> None:
            backbone.token_reduction = reduction
            with torch.inference_mode():
                model(images)

        return call

    calls = []
    for case in cases:
        backbone.set_token_reduction(**{name: case.backbone.get(name) for name in REDUCTIONS})
        calls.append(call_with(backbone.token_reduction))
    macs = [count_macs(model, call=call).total for call in calls]
    peak = MatmulPeak(torch.device(first.device), torch.float32)
    timings = interleave(calls, peak, seconds=job['seconds'], min_rounds=job['min_rounds'], gemm_seconds=0.05)
    return {
        'cases': [{'macs': n, 'seconds': timing.seconds} for n, timing in zip(macs, timings, strict=True)],
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
    }


def _network(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a backbone without those of token reduction."""
    return {name: value for name, value in settings.items() if name not in REDUCTIONS}


if __name__ == '__main__':
    worker.main(*sys.argv[1:], tasks={'turns': measure_turns})
