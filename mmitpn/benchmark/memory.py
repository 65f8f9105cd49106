"""Memory: the activations that a training step keeps for its backward pass, and the peaks of tensors and processes."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


class _Saved:
    """A tensor kept for the backward pass, alive exactly as long as the graph needs it."""

    __slots__ = ('__weakref__', 'tensor')

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@dataclass(frozen=True)
class StepReport:
    """One training step.

    Attributes:
        activation_bytes: Memory of the graph's saved tensors at the end of the forward pass: distinct storages, without
            parameters and buffers.
        gradients: Parameter name -> gradient, for the parameters that have one.
        loss: The sum of the losses.
    """

    activation_bytes: int
    gradients: dict[str, Tensor]
    loss: float


def _saved_bytes(saved: Iterable[_Saved], own: set[int]) -> int:
    """Sum of the distinct storages behind the saved tensors, without those in ``own``."""
    storages = {}
    for item in saved:
        storage = item.tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure_step(model: nn.Module, loss: Callable[[], Tensor]) -> StepReport:
    """Run one forward and backward pass and measure the activations that the first keeps for the second.

    A checkpointed block keeps its input only. What it recomputes exists in the backward pass, one block at a time, and
    is not part of the figure.

    Args:
        model: The model; its gradients are cleared before and after.
        loss: Runs the forward pass and returns a scalar.

    Returns:
        The report; the gradients are copies.

    Raises:
        ValueError: If the loss is not a finite scalar.
    """
    model.zero_grad(set_to_none=True)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        item = _Saved(tensor)
        alive.add(item)
        return item

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda item: item.tensor):
        value = loss()
    if value.numel() != 1 or not torch.isfinite(value).all():
        raise ValueError(f'the loss of the step is {value!r}; it must be one finite number')
    saved = _saved_bytes(alive, own)
    value.backward()
    gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return StepReport(saved, gradients, float(value.detach()))


def gradient_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> tuple[float, str]:
    """Compare the gradients of two steps.

    Args:
        first: Parameter name -> gradient.
        second: The same parameters.

    Returns:
        The largest difference over all parameters, relative to the largest gradient of the same parameter, and the
        parameter's name. Where a gradient in ``first`` is all zeros, the difference is absolute.

    Raises:
        ValueError: If the two do not have the same parameters.
    """
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise ValueError(f'{len(odd)} parameters have a gradient in one step only, such as {odd[0]!r}')
    worst, where = 0.0, ''
    for name, gradient in first.items():
        largest = float(gradient.abs().max())
        difference = float((gradient - second[name]).abs().max()) / (largest or 1.0)
        if not difference <= worst:  # also true for NaN
            worst, where = difference, name
    return worst, where


def peak_tensor_bytes(call: Callable[[], Any]) -> int:
    """Peak memory of the tensors that a call allocates on the CPU, in bytes.

    Unlike the peak of the process it does not depend on the freed memory that the C library keeps.

    Args:
        call: A function, run once.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()  # counted until the end
    del result
    return max(accumulate(size for _, size in memory_events(profiler)[0]), default=0)


def memory_events(profiler: profile, mark: str = '') -> tuple[list[tuple[float, int]], list[float]]:
    """Allocations on the CPU that a profiler with ``profile_memory`` recorded.

    Args:
        profiler: The profiler, after its ``with`` block.
        mark: Name of ``record_function`` spans whose ends are returned.

    Returns:
        Time and bytes of every allocation (positive) and release (negative), and the times of the marks, in order.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding='utf-8'))['traceEvents']
    changes = [
        (event['ts'], event['args']['Bytes'])
        for event in events
        if event['name'] == '[memory]' and event['args'].get('Device Type') == 0
    ]
    marks = sorted(event['ts'] + event['dur'] for event in events if event['name'] == mark and 'dur' in event)
    return sorted(changes, key=lambda change: change[0]), marks


def process_peak_bytes() -> int:
    """Peak resident memory of this process so far, in bytes.

    On Linux it is read from ``/proc``: ``getrusage`` there starts at what the parent process held when it forked.
    """
    status = Path('/proc/self/status')
    if status.is_file():
        for line in status.read_text(encoding='ascii', errors='replace').splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
