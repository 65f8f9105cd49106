"""Training steps of a config's model on random images on a CPU, and the peak of a process that really trains.

``python -m memory_plan.training_step JOB.json RESULT.json`` measures that peak in a fresh process.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, is_tensor, nn
from torch.overrides import TorchFunctionMode

from mmitpn.benchmark import worker
from mmitpn.benchmark.case import BenchmarkCase, checkpointing_switches, set_checkpointing
from mmitpn.benchmark.memory import peak_tensor_bytes, process_peak_bytes
from mmitpn.testing.demo_inputs import (
    build_from_config,
    loss_call,
    make_samples,
    quiet_logger,
    set_training_progress,
)

from .model_states import nbytes
from .timeline import SIDES, MemoryTimeline, StepSize, record_step

PRECISIONS = ('fp32', 'bf16')
STEPS = 2  # of the process that trains
# Operators that keep large tensors and that autocast runs in fp32 on a GPU but not on a CPU.
_FP32_ON_GPUS = frozenset(
    {F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax}
)


class GpuAutocast(TorchFunctionMode):
    """Makes autocast on a CPU keep the tensors that it keeps on a GPU: norms and softmax in fp32."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one function of torch."""
        if func in _FP32_ON_GPUS and torch.is_autocast_enabled('cpu'):
            args = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        return func(*args, **(kwargs or {}))


def build_training_model(config: str | Path, overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a config's model with random weights, ready for training steps in one process.

    Args:
        config: The config file.
        overrides: Dotted key -> value, as ``--cfg-options``.
    """
    from mmengine.model import revert_sync_batchnorm

    set_training_progress()
    return revert_sync_batchnorm(build_from_config(config, overrides=overrides)).train()


def least_batch(model: nn.Module) -> int:
    """Least number of images of a step: BatchNorm needs two where a map has a single position."""
    return 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()) else 1


def random_loss(model: nn.Module, size: StepSize, objects: int) -> Tensor:
    """Run the forward pass on random images and ground truth, always the same.

    Args:
        model: Of :func:`build_training_model`.
        size: Size of the step.
        objects: Number of objects per image.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - mmdet and mmseg draw from the global generator
    torch.manual_seed(0)
    images = torch.randn(size.batch, 3, *size.size)
    samples = make_samples(model, size.size, batch=size.batch, objects=objects, device=torch.device('cpu'))
    return loss_call(model, images, samples)()


def record_size(model: nn.Module, size: StepSize, *, objects: int, precision: str = 'fp32') -> MemoryTimeline:
    """Run one step and record its memory.

    Args:
        model: Of :func:`build_training_model`.
        size: Size of the step.
        objects: Number of objects per image.
        precision: ``'fp32'``, or ``'bf16'`` for autocast as on a GPU.

    Raises:
        ValueError: If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision is {precision!r}; allowed: {", ".join(map(repr, PRECISIONS))}')

    def context() -> AbstractContextManager:
        return nullcontext() if precision == 'fp32' else torch.autocast('cpu', dtype=torch.bfloat16)

    # Recomputation in the backward pass enters autocast by itself, so the mode is on for the whole step.
    with nullcontext() if precision == 'fp32' else GpuAutocast():
        return record_step(model, lambda: random_loss(model, size, objects), context=context)


def checkpointing_ways(model: nn.Module) -> list[str]:
    """The ways of checkpointing that differ: ``'none'``, ``'config'`` (where it checkpoints a part), ``'all'``.

    Args:
        model: As its config built it.
    """
    states = [getattr(module, name) == everything for _, module, name, everything in checkpointing_switches(model)]
    if not states:
        return ['none']
    return ['none', 'config', 'all'] if len(set(states)) > 1 else ['none', 'all']


@contextmanager
def checkpointed(model: nn.Module, way: str) -> Iterator[None]:
    """Switch a model to a way of checkpointing, and back to that of its config.

    Args:
        model: As its config built it.
        way: One of :func:`checkpointing_ways`.
    """
    before = [(module, name, getattr(module, name)) for _, module, name, _ in checkpointing_switches(model)]
    if way != 'config':
        set_checkpointing(model, on=way == 'all')
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


# --- a process that trains ------------------------------------------------------------------------------------------


def training_peak(case: BenchmarkCase) -> dict[str, int]:
    """Train a config's model for two steps on the CPU: forward, backward, and the config's optimizer.

    Run it in a fresh process: memory that an earlier step freed would be used again. Libraries load parts of themselves
    at their first use; so a step on small images comes first, and counting starts at the memory of the process after
    it, without the model and its states.

    Args:
        case: A config's model in a training step.

    Returns:
        ``process_bytes``: peak memory of the process in the steps, without its libraries; ``tensor_bytes``: peak memory
        of its tensors in a third step.
    """
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper

    model = build_training_model(case.config)
    with quiet_logger():
        wrapper = build_optim_wrapper(model, Config.fromfile(case.config).optim_wrapper)

    def step(size: StepSize) -> None:
        wrapper.update_params(random_loss(model, size, case.objects))

    small = StepSize(tuple(min(side, SIDES[0]) for side in case.size), min(case.batch, least_batch(model)))
    size = StepSize(case.size, case.batch)
    with checkpointed(model, 'all' if case.with_cp else 'none'):
        step(small)
        states = (value for state in wrapper.optimizer.state.values() for value in state.values())
        always = nbytes(iter([*model.parameters(), *model.buffers(), *(value for value in states if is_tensor(value))]))
        gc.collect()
        _trim_heap()
        libraries = _resident_bytes() - always
        _reset_process_peak()
        for _ in range(STEPS):
            step(size)
        process = process_peak_bytes() - libraries
        tensors = always + peak_tensor_bytes(lambda: step(size))
    return {'process_bytes': process, 'tensor_bytes': tensors}


def _reset_process_peak() -> None:
    """Reset the peak memory of this process to its current memory, on Linux."""
    Path('/proc/self/clear_refs').write_text('5', encoding='ascii')


def _resident_bytes() -> int:
    """Current memory of this process."""
    for line in Path('/proc/self/status').read_text(encoding='ascii', errors='replace').splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) * 1024
    raise OSError('/proc/self/status has no VmRSS: the peak of a training process is measured on Linux only')


def _trim_heap() -> None:
    """Return freed memory to the system, where the C library is glibc."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


if __name__ == '__main__':
    worker.main(*sys.argv[1:], tasks={'training': lambda job: training_peak(*worker.load_cases(job))})
