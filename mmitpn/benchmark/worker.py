"""Measures in a fresh process: :func:`run_job` starts ``python -m mmitpn.benchmark.worker JOB.json RESULT.json``.

A job is ``{"task": "memory" | "speed", "threads": N | null, "seconds": S, "cases": [...]}``. Memory takes one case and
a fresh process, so that the peak is that of the case (``"tensors": true`` adds the peak of its tensors alone). Speed
takes any number of cases, which run in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmitpn.models.cpu_inference import keep_freed_memory

from .memory import peak_tensor_bytes, process_peak_bytes

if TYPE_CHECKING:
    from .case import BenchmarkCase

Task = Callable[[dict[str, Any]], dict[str, Any]]


def run_job(
    task: str,
    cases: Sequence[BenchmarkCase],
    *,
    module: str = 'mmitpn.benchmark.worker',
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure in a fresh process.

    Args:
        task: ``'memory'`` (one case) or ``'speed'``, or a task of ``module``.
        cases: What to measure.
        module: What the process runs; another module calls :func:`main` with tasks of its own.
        environment: More environment variables of the process.
        **settings: ``threads``, ``seconds`` and ``min_rounds`` of the job.

    Returns:
        The task's result.

    Raises:
        RuntimeError: If the process failed; the message ends with its last lines.
    """
    job = {'task': task, 'cases': [asdict(case) for case in cases], **settings}
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder) / 'job.json', Path(folder) / 'result.json'
        job_file.write_text(json.dumps(job), encoding='utf-8')
        process = subprocess.run(
            [sys.executable, '-m', module, str(job_file), str(result_file)],
            env={**process_environment(), **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode or not result_file.is_file():
            last = '\n'.join((process.stderr or process.stdout).strip().splitlines()[-15:])
            killed = ' (killed: out of memory?)' if process.returncode == -9 else ''
            raise RuntimeError(
                f'measuring the {task} of {", ".join(case.name for case in cases)} failed with exit status'
                f' {process.returncode}{killed}:\n{last}'
            )
        return json.loads(result_file.read_text(encoding='utf-8'))


def process_environment() -> dict[str, str]:
    """Environment variables of a process that imports this package, which may be a clone that is not installed."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
    return {**os.environ, 'PYTHONPATH': path}


def load_cases(job: Mapping[str, Any]) -> list[BenchmarkCase]:
    """Set the process up as a job asks for, and read its cases.

    Args:
        job: The job.
    """
    import torch

    from .case import BenchmarkCase

    if not any(case['device'] == 'cuda' for case in job['cases']):
        keep_freed_memory()  # as the tools for training and testing do
    if job.get('threads'):
        torch.set_num_threads(job['threads'])
    # fp32 means fp32, in the model and in the matrix product that it is compared with.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    return [BenchmarkCase(**{**case, 'size': tuple(case['size'])}) for case in job['cases']]


def measure_memory(job: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of this process, which imports, builds and runs one case once; ``tensors``: of its tensors too."""
    (case,) = load_cases(job)
    import torch

    from .case import build_case

    imported = process_peak_bytes()
    model, step = build_case(case)
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


def measure_speed(job: dict[str, Any]) -> dict[str, Any]:
    """Times of several cases and of the matrix product, in turns."""
    cases = load_cases(job)
    import torch

    from .case import DTYPES, build_case
    from .macs import count_macs
    from .speed import MatmulPeak, interleave

    models, calls = zip(*(build_case(case) for case in cases), strict=True)
    macs = [count_macs(model, call=call).total for model, call in zip(models, calls, strict=True)]
    gemm = MatmulPeak(torch.device(cases[0].device), DTYPES[cases[0].dtype])
    timings = interleave(calls, gemm, seconds=job['seconds'], min_rounds=job.get('min_rounds', 5))
    peak, rounds = gemm.macs_per_second, gemm.by_round()
    results = []
    for case, n, timing in zip(cases, macs, timings, strict=True):
        # The matrix product was measured before and after each round: compare with the mean of the two.
        fractions = [
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
                'gemm_share_by_round': fractions,
            }
        )
    return {
        'gemm_macs_per_second': peak,
        'gemm_by_side': {str(side): rates for side, rates in gemm.rates.items()},
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'cases': results,
    }


TASKS: dict[str, Task] = {'memory': measure_memory, 'speed': measure_speed}


def main(job_file: str, result_file: str, *, tasks: Mapping[str, Task] = TASKS) -> None:
    """Run the job in one file with one of ``tasks`` and write the result to the other file."""
    job = json.loads(Path(job_file).read_text(encoding='utf-8'))
    if job.get('task') not in tasks:
        raise ValueError(f'the job asks for {job.get("task")!r}; allowed: {", ".join(tasks)}')
    Path(result_file).write_text(json.dumps(tasks[job['task']](job)), encoding='utf-8')


if __name__ == '__main__':
    main(*sys.argv[1:])
