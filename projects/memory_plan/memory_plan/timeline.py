"""When a training step holds how much: the memory of its tensors from the first picture to the last gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from .memory import memory_events

MARK = 'mmitpn.step_trace'
SMALL_BLOCK = 2**14


@dataclass(frozen=True)
class StepTrace:
    """One forward and one backward pass, in bytes, without parameters, buffers and optimiser.

    The backward pass is cut where a parameter's gradient is ready: the cuts are the same for every size of pictures.

    Attributes:
        held: What is alive when the losses are there: pictures, truth, and what the graph keeps.
        forward: The most that is alive before.
        names: Parameters that got a gradient, in the order in which they did.
        backward: The most that is alive up to each of these gradients, and after the last one, without the gradients
            that were ready before; one number more than ``names``.
        left: What is alive when the backward pass is over, without gradients.
        blocks: Bytes of an allocation -> how many of them the forward pass made, for those of 16 KB and more.
    """

    held: int
    forward: int
    names: tuple[str, ...]
    backward: tuple[int, ...]
    left: int
    blocks: Mapping[int, int]


def trace_step(
    model: nn.Module, loss: Callable[[], Tensor], *, context: Callable[[], AbstractContextManager] = nullcontext
) -> StepTrace:
    """Run one forward and backward pass on the CPU and see when it holds how much.

    Every allocation is counted, those inside of operators too.

    Args:
        model: The model, on the CPU; its gradients are cleared before and after.
        loss: Makes the pictures, runs the forward pass and returns a scalar.
        context: What the forward pass runs in, such as autocast.

    Raises:
        ValueError: If the loss is not a scalar that gives gradients.
    """
    model.zero_grad(set_to_none=True)
    ready: list[tuple[str, int]] = []
    seen: set[str] = set()

    def hook_of(name: str) -> Callable[[nn.Parameter], None]:
        def hook(parameter: nn.Parameter) -> None:
            if name not in seen:
                seen.add(name)
                ready.append((name, parameter.grad.untyped_storage().nbytes()))
                with record_function(MARK):
                    pass

        return hook

    hooks = [
        parameter.register_post_accumulate_grad_hook(hook_of(name))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            with context():
                value = loss()
            if value.numel() != 1 or not value.requires_grad:
                raise ValueError(f'the loss of the step is {value!r}; it must be one number with a gradient')
            with record_function(MARK):
                pass
            torch.autograd.backward(value)  # the tensor's method would run without modes of torch's functions
            with record_function(MARK):
                pass
            del value
    finally:
        for hook in hooks:
            hook.remove()
    model.zero_grad(set_to_none=True)
    changes, marks = memory_events(profiler, MARK)
    peaks, ends = _between(changes, marks)
    gradients = [0]
    for _, size in ready:
        gradients.append(gradients[-1] + size)
    # Before the end of the forward pass nothing of a gradient is there; the last span is the profiler's own end.
    spans = zip(peaks[1:-1], gradients, strict=True)
    return StepTrace(
        held=ends[0],
        forward=peaks[0],
        names=tuple(name for name, _ in ready),
        backward=tuple(peak - before for peak, before in spans),
        left=ends[-2] - gradients[-1],
        blocks=Counter(size for at, size in changes if at < marks[0] and size >= SMALL_BLOCK),
    )


def _between(changes: list[tuple[float, int]], marks: list[float]) -> tuple[list[int], list[int]]:
    """The most that is alive in every span between marks, and what is alive at its end."""
    peaks, ends = [], []
    alive = most = 0
    upcoming = iter([*marks, float('inf')])
    until = next(upcoming)
    for at, size in changes:
        while at >= until:
            peaks.append(most)
            ends.append(alive)
            most, until = alive, next(upcoming)
        alive += size
        most = max(most, alive)
    while len(peaks) <= len(marks):
        peaks.append(most)
        ends.append(alive)
        most = alive
    return peaks, ends
