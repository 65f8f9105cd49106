"""How much of a network's time goes into handling tokens instead of computing with them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from mmitpn.benchmark import worker
from mmitpn.models.token_reduction import GatheringAttend, GlobalAttend, TokenReducer, TokenSet, WindowGrid

# Windows are cut and put together, tokens are scored, taken away and put back, gathering tokens are pooled and handed
# to the other windows. What is left of a block is its norms, its matrix products and its fused attention.
_HANDLING: tuple[tuple[type, str], ...] = (
    (WindowGrid, 'partition'),
    (WindowGrid, 'merge'),
    (TokenReducer, 'forward'),
    (TokenSet, 'restore'),
    (GlobalAttend, '__init__'),
    (GatheringAttend, '__init__'),
    (GatheringAttend, '_with_gathered'),
)


class _Clock:
    """Sums the time spent inside, without counting what runs inside of it twice."""

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
def _watched() -> Iterator[_Clock]:
    clock = _Clock()
    originals = [(cls, name, cls.__dict__[name]) for cls, name in _HANDLING]
    for cls, name, function in originals:
        setattr(cls, name, clock.wrap(function))
    try:
        yield clock
    finally:
        for cls, name, function in originals:
            setattr(cls, name, function)


def bookkeeping_share(call: Callable[[], Any], *, rounds: int = 3) -> float:
    """Share of the time of a call that token migration and token gathering spend on handling tokens.

    Only on a CPU, where a call returns when it is done.

    Args:
        call: One forward run of a network.
        rounds: Runs; the share is that of all together.

    Returns:
        From 0 (nothing of the kind is in the network) to 1.
    """
    with _watched() as clock:
        start = time.perf_counter()
        for _ in range(rounds):
            call()
        return clock.seconds / (time.perf_counter() - start)


def measure_speed(job: dict[str, Any]) -> dict[str, Any]:
    """Speeds of a job's cases, with the share that handling tokens takes in each."""
    from mmitpn.benchmark.case import build_case

    result = worker.measure_speed(job)
    for row, case in zip(result['cases'], worker.load_cases(job), strict=True):
        reduces = case.device == 'cpu' and bool(case.backbone)
        row['bookkeeping_share'] = bookkeeping_share(build_case(case)[1], rounds=2) if reduces else 0
    return result


if __name__ == '__main__':
    worker.main(*sys.argv[1:], tasks={**worker.TASKS, 'speed': measure_speed})
