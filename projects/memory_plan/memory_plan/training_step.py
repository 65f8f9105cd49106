"""Training steps of a config's model on made-up pictures, run on the CPU to see what they hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .cases import set_checkpointing
from .host_model import build_from_config, loss_call, make_samples
from .memory_fit import Point
from .step_trace import StepTrace, trace_step

PRECISIONS = ('fp32', 'bf16')
# Of what a GPU's autocast runs in fp32 and a CPU's does not, the operators that keep large tensors.
_FP32_ON_GPUS = frozenset(
    {F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax}
)


class GpuAutocast(TorchFunctionMode):
    """Lets a CPU under autocast keep the tensors that a GPU keeps: norms and softmax in fp32."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one function of torch."""
        if func in _FP32_ON_GPUS and torch.is_autocast_enabled('cpu'):
            args = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        return func(*args, **(kwargs or {}))


def build_training_model(config: str | Path, overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a config's model with fresh weights, ready for training steps in one process.

    Args:
        config: The config file.
        overrides: Dotted key -> value, as ``--cfg-options``.
    """
    from mmengine.logging import MessageHub
    from mmengine.model import revert_sync_batchnorm

    # Some heads ask the runner how far the training is.
    hub = MessageHub.get_current_instance()
    hub.update_info_dict({'epoch': 0, 'iter': 0, 'max_epochs': 1, 'max_iters': 1})
    return revert_sync_batchnorm(build_from_config(config, overrides=overrides)).train()


def least_batch(model: nn.Module) -> int:
    """Pictures that a step needs at least: BatchNorm wants two where a map has one place only."""
    return 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()) else 1


def made_up_loss(model: nn.Module, point: Point, objects: int) -> Tensor:
    """Make pictures and truth, always the same, and run the forward pass.

    Args:
        model: Of :func:`build_training_model`.
        point: Size and batch.
        objects: In each picture.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the hosts draw from the global generator
    torch.manual_seed(0)
    pictures = torch.randn(point.batch, 3, *point.size)
    samples = make_samples(model, point.size, batch=point.batch, objects=objects, device=torch.device('cpu'))
    return loss_call(model, pictures, samples)()


def trace_point(model: nn.Module, point: Point, *, objects: int, precision: str = 'fp32') -> StepTrace:
    """Run one step and see when it holds how much.

    Args:
        model: Of :func:`build_training_model`.
        point: Size and batch.
        objects: In each picture.
        precision: ``'fp32'``, or ``'bf16'`` for autocast as GPUs do it.

    Raises:
        ValueError: If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision is {precision!r}; allowed: {", ".join(map(repr, PRECISIONS))}')

    def context() -> AbstractContextManager:
        return nullcontext() if precision == 'fp32' else torch.autocast('cpu', dtype=torch.bfloat16)

    # What is recomputed in the backward pass enters autocast by itself, so the mode is on all along.
    with nullcontext() if precision == 'fp32' else GpuAutocast():
        return trace_step(model, lambda: made_up_loss(model, point, objects), context=context)


def checkpointing_ways(model: nn.Module) -> list[str]:
    """The ways of checkpointing that differ: ``'none'``, ``'config'`` (where it is some of what can be), ``'all'``.

    Args:
        model: As its config made it.
    """
    states = [state for _, _, state in _switches(model)]
    if not states:
        return ['none']
    some = any(states) and len(set(states)) > 1
    return ['none', 'config', 'all'] if some else ['none', 'all']


def _switches(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Module, attribute and whether it is on, of all that :func:`set_checkpointing` switches."""
    for module in model.modules():
        if isinstance(getattr(module, 'with_cp', None), bool):
            yield module, 'with_cp', module.with_cp
        elif isinstance(getattr(module, 'num_recomputed', None), int):
            yield module, 'num_recomputed', module.num_recomputed == len(module.layers)


@contextmanager
def checkpointed(model: nn.Module, way: str) -> Iterator[None]:
    """Switch a model to a way of checkpointing, and back to that of its config.

    Args:
        model: As its config made it.
        way: One of :func:`checkpointing_ways`.
    """
    before = [(module, name, getattr(module, name)) for module, name, _ in _switches(model)]
    if way != 'config':
        set_checkpointing(model, on=way == 'all')
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
