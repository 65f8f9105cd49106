"""The peak of a process that really trains: what the paper plan is checked against."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

from torch import is_tensor

from .cases import Case
from .memory import peak_tensor_bytes, process_peak_bytes

STEPS = 2


def reset_process_peak() -> None:
    """Let the peak of this process start anew at what it holds now.

    Raises:
        OSError: If the system has no such thing; Linux has.
    """
    Path('/proc/self/clear_refs').write_text('5', encoding='ascii')


def resident_bytes() -> int:
    """What this process holds now, in bytes."""
    for line in Path('/proc/self/status').read_text(encoding='ascii', errors='replace').splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) * 1024
    raise OSError('/proc/self/status has no VmRSS: the peak of a training is measured on Linux only')


def _give_back() -> None:
    """Let the C library give back what it keeps of freed memory, where it is glibc."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


def training_peak(case: Case) -> dict[str, int]:
    """Train a config's model for two steps on the CPU: forward, backward, and the config's optimiser.

    Run it in a fresh process: what an earlier step left behind would be used again. Libraries load parts of themselves
    at their first use; so a step on small pictures comes before, and what the process holds after it, but for the
    model and its states, is where counting starts.

    Args:
        case: A whole model in a training step.

    Returns:
        ``process_bytes``: what the process held more than its libraries in the fullest moment of the steps;
        ``tensor_bytes``: the most that its tensors held in a third step.
    """
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper

    from .host_model import quiet_logger
    from .memory_fit import SIDES, Point
    from .model_facts import nbytes
    from .training_step import build_training_model, checkpointed, least_batch, made_up_loss

    model = build_training_model(case.config)
    with quiet_logger():
        wrapper = build_optim_wrapper(model, Config.fromfile(case.config).optim_wrapper)

    def step(point: Point) -> None:
        wrapper.update_params(made_up_loss(model, point, case.objects))

    small = Point(tuple(min(side, SIDES[0]) for side in case.size), min(case.batch, least_batch(model)))
    point = Point(case.size, case.batch)
    with checkpointed(model, 'all' if case.with_cp else 'none'):
        step(small)
        states = (value for state in wrapper.optimizer.state.values() for value in state.values())
        held = nbytes(iter([*model.parameters(), *model.buffers(), *(value for value in states if is_tensor(value))]))
        gc.collect()
        _give_back()
        libraries = resident_bytes() - held
        reset_process_peak()
        for _ in range(STEPS):
            step(point)
        process = process_peak_bytes() - libraries
        tensors = held + peak_tensor_bytes(lambda: step(point))
    return {'process_bytes': process, 'tensor_bytes': tensors}
