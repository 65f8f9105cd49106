"""The process that measures: ``python -m mmitpn.analysis.worker JOB.json RESULT.json``.

A job is ``{"task": "memory" | "speed" | "training", "threads": N | null, "seconds": S, "cases": [...]}``. Memory takes
one case and a fresh process, so that the peak is that case's own (``"tensors": true``: and the peak of its tensors
alone); training takes one too, with the optimiser of its config; speed takes any number, which are run in turns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmitpn.models.cpu_inference import keep_freed_memory

from .memory import peak_tensor_bytes, process_peak_bytes


def load_cases(job: dict[str, Any]) -> list:
    """The cases of a job, after the settings of the process that it asks for."""
    import torch

    from .cases import Case

    if not any(case['device'] == 'cuda' for case in job['cases']):
        keep_freed_memory()  # as the tools for training and testing do
    if job.get('threads'):
        torch.set_num_threads(job['threads'])
    # fp32 means fp32, in the model and in the matrix product it is compared with.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    return [Case(**{**case, 'size': tuple(case['size'])}) for case in job['cases']]


def measure_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of a process that imports, builds and runs one case once; ``tensors``: that of its tensors too."""
    (case,) = load_cases(job)
    import torch

    from .cases import build

    imported = process_peak_bytes()
    model, step = build(case)
    built = process_peak_bytes()
    step()
    result = {
        'imports_bytes': imported,
        'built_bytes': built,
        'peak_bytes': process_peak_bytes(),
        'parameters': sum(p.numel() for p in model.parameters()),
    }
    if job.get('tensors'):
        result['tensor_bytes'] = peak_tensor_bytes(step)
    if case.device == 'cuda':
        result['cuda_peak_bytes'] = torch.cuda.max_memory_allocated()
    return result


def measure_training(job: dict[str, Any]) -> dict[str, int]:
    """Peak memory of a process that trains one case for two steps."""
    (case,) = load_cases(job)
    from .training_peak import training_peak

    return training_peak(case)


def measure_speed(job: dict[str, Any]) -> dict[str, Any]:
    """Times of several cases and of the matrix product, in turns."""
    cases = load_cases(job)
    import torch

    from .cases import DTYPES, build
    from .macs import count_macs
    from .speed import GemmPeak, interleave

    models, calls = zip(*(build(case) for case in cases), strict=True)
    macs = [count_macs(model, call=call).total for model, call in zip(models, calls, strict=True)]
    gemm = GemmPeak(torch.device(cases[0].device), DTYPES[cases[0].dtype])
    timings = interleave(calls, gemm, seconds=job['seconds'], min_rounds=job.get('min_rounds', 5))
    peak, rounds = gemm.macs_per_second, gemm.by_round()
    results = []
    for case, n, timing in zip(cases, macs, timings, strict=True):
        # The matrix product was measured before and after each round: compare with the mean of the two.
        shares = [
            n / seconds / ((before + after) / 2)
            for seconds, (before, after) in zip(timing.seconds, pairwise(rounds), strict=True)
        ]
        results.append(
            {
                'macs': n,
                'seconds': timing.seconds,
                'median_seconds': timing.median,
                'images_per_second': case.batch / timing.median,
                'gemm_share': n / timing.median / peak,
                'gemm_share_by_round': shares,
            }
        )
    return {
        'gemm_macs_per_second': peak,
        'gemm_by_side': {str(side): rates for side, rates in gemm.rates.items()},
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'cases': results,
    }


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    'memory': measure_memory,
    'speed': measure_speed,
    'training': measure_training,
}


def main(
    job_file: str, result_file: str, *, tasks: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = TASKS
) -> None:
    """Run the job of one file by one of ``tasks`` and write the result to the other."""
    job = json.loads(Path(job_file).read_text(encoding='utf-8'))
    if job.get('task') not in tasks:
        raise ValueError(f'the job asks for {job.get("task")!r}; allowed: {", ".join(tasks)}')
    Path(result_file).write_text(json.dumps(tasks[job['task']](job)), encoding='utf-8')


if __name__ == '__main__':
    main(*sys.argv[1:])
