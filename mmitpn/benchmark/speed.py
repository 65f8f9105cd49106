"""Speed of models as a fraction of the machine's matrix product (MFU), measured at the same time."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

# Sides of the square matrices; the fastest is the peak. Small ones fit the caches of a CPU, large ones fill a GPU.
CPU_SIDES = (1024, 2048)
CUDA_SIDES = (4096, 8192)


def describe_machine() -> dict[str, Any]:
    """Processor, number of cores, load and Python version of the machine that measures."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        names = [line.split(':', 1)[1].strip() for line in cpuinfo.read_text().splitlines() if 'model name' in line]
        model = names[0] if names else model
    return {
        'processor': model,
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'load_average': list(os.getloadavg()),
        'python': platform.python_version(),
    }


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, until the device has finished it."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def latency(call: Callable[[], Any], device: torch.device, *, seconds: float, min_runs: int = 20) -> dict[str, Any]:
    """Time a call alone: each run starts on an idle device, so that the time to launch it counts too.

    Args:
        call: One run; it is run before, untimed: three times on a GPU, once on a CPU.
        device: Where it runs. On a GPU, CUDA events take the times.
        seconds: Measure for at least this time, and at least ``min_runs`` times; on a CPU three times.
        min_runs: Least number of runs on a GPU.

    Returns:
        ``ms`` (median), ``p95`` (95th percentile, milliseconds), ``runs``, and on a GPU ``peak_GB``, the largest memory
        allocated by tensors.
    """
    cuda = device.type == 'cuda'
    for _ in range(3 if cuda else 1):
        call()
    synchronize(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times, start = [], time.perf_counter()
    while len(times) < (min_runs if cuda else 3) or (cuda and time.perf_counter() - start < seconds):
        if cuda:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after))
        else:
            times.append(1e3 * timed(call, device))
    row = {'ms': median(times), 'p95': quantiles(times, n=20, method='inclusive')[-1], 'runs': len(times)}
    if cuda:
        row['peak_GB'] = torch.cuda.max_memory_allocated(device) / 1e9
    return row


class MatmulPeak:
    """The rate of square matrix products, the peak that models are compared with, measured in short rounds.

    Args:
        device: Where to run.
        dtype: Of the matrices.
        sides: Of the matrices; None means ``CPU_SIDES`` or ``CUDA_SIDES``.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, sides: Sequence[int] | None = None) -> None:
        self.device = device
        self.sides = tuple(sides or (CUDA_SIDES if device.type == 'cuda' else CPU_SIDES))
        self._matrices = {n: [torch.randn(n, n, device=device).to(dtype) for _ in range(3)] for n in self.sides}
        self.rates: dict[int, list[float]] = {n: [] for n in self.sides}
        for n in self.sides:
            self._run(n, 1)

    def _run(self, side: int, times: int) -> float:
        left, right, out = self._matrices[side]

        def repeat() -> None:
            for _ in range(times):
                torch.mm(left, right, out=out)

        with torch.no_grad():
            return timed(repeat, self.device)

    def measure(self, seconds: float) -> None:
        """Measure one rate for each side, in about ``seconds`` for all of them."""
        seconds_each = seconds / len(self.sides)
        for n in self.sides:
            once = self._run(n, 1)
            times = max(1, min(1000, round(seconds_each / once)))
            self.rates[n].append(n**3 * times / self._run(n, times))

    @property
    def macs_per_second(self) -> float:
        """The median rate of the fastest side."""
        return max(median(rates) for rates in self.rates.values() if rates)

    def by_round(self) -> list[float]:
        """The rate of the fastest side in each round."""
        return [max(rates) for rates in zip(*self.rates.values(), strict=True)]


@dataclass
class Timing:
    """Times of one model.

    Attributes:
        seconds: Of every run.
    """

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median time in seconds."""
        return median(self.seconds)


def interleave(
    calls: Sequence[Callable[[], Any]],
    gemm: MatmulPeak,
    *,
    seconds: float,
    min_rounds: int = 5,
    gemm_seconds: float = 0.4,
) -> list[Timing]:
    """Time several models and the matrix product in turns.

    A shared machine is slow for seconds at a time; in turns, all models meet the same load.

    Args:
        calls: One run of each model; each is run once before, untimed.
        gemm: Measured at the start of every round and once at the end.
        seconds: Measure for at least this time...
        min_rounds: ...and at least this number of rounds.
        gemm_seconds: Time for the matrix products of a round.

    Returns:
        The times of each model, one per round.
    """
    timings = [Timing() for _ in calls]
    for call in calls:
        call()
    start, rounds = time.perf_counter(), 0
    while rounds < min_rounds or time.perf_counter() - start < seconds:
        gemm.measure(gemm_seconds)
        for call, timing in zip(calls, timings, strict=True):
            timing.seconds.append(timed(call, gemm.device))
        rounds += 1
    gemm.measure(gemm_seconds)
    return timings
