"""The process that measures (``python -m token_study.worker JOB.json RESULT.json``), and the overhead of tokens.

As :mod:`mmitpn.benchmark.worker`, with the methods of this study and the token overhead of each speed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import token_study  # noqa: F401 - registers the methods
from mmitpn.benchmark import worker
from mmitpn.models.token_reduction import (
    BaseTokenReducer,
    GatheringAttention,
    ProportionalAttention,
    WindowedTokens,
    WindowPartition,
)

# Windows are partitioned and merged, tokens are scored, dropped and restored, gathering tokens are pooled and passed to
# the other windows. What is left of a block are its norms, its matrix products and its fused attention.
_HANDLING: tuple[tuple[type, str], ...] = (
    (WindowPartition, 'partition'),
    (WindowPartition, 'merge'),
    (BaseTokenReducer, 'forward'),
    (WindowedTokens, 'restore'),
    (ProportionalAttention, '__init__'),
    (GatheringAttention, '__init__'),
    (GatheringAttention, '_with_gathered'),
)


class _Clock:
    """Sums the time spent inside wrapped functions; a function inside another one is not counted twice."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside, self.seconds = False, self.seconds + time.perf_counter() - start

        return timed


@contextmanager
def _timed_handling() -> Iterator[_Clock]:
    clock = _Clock()
    originals = [(cls, name, cls.__dict__[name]) for cls, name in _HANDLING]
    for cls, name, function in originals:
        setattr(cls, name, clock.wrap(function))
    try:
        yield clock
    finally:
        for cls, name, function in originals:
            setattr(cls, name, function)


def token_overhead(call: Callable[[], Any], *, rounds: int = 3) -> float:
    """Fraction of the time of a call that token reduction spends on handling tokens.

    Only on a CPU, where a call returns when it is done.

    Args:
        call: One forward pass of a network.
        rounds: Number of calls; the fraction is that of all together.

    Returns:
        From 0 (the network has no token reduction) to 1.
    """
    with _timed_handling() as clock:
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        return clock.seconds / (time.perf_counter() - start)


def measure_speed(job: dict[str, Any]) -> dict[str, Any]:
    """Speeds as the package measures them, with the ``token_overhead`` of every case."""
    from mmitpn.benchmark.case import build_case

    result = worker.measure_speed(job)
    for row, case in zip(result['cases'], worker.load_cases(job), strict=True):
        reduces = case.device == 'cpu' and bool(case.backbone)
        row['token_overhead'] = token_overhead(build_case(case)[1], rounds=2) if reduces else 0
    return result


if __name__ == '__main__':
    worker.main(*sys.argv[1:], tasks={**worker.TASKS, 'speed': measure_speed})
