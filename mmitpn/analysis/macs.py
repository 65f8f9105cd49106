"""Multiply-adds of a network, exact for matrix products, convolutions and attention.

The counters of fvcore and mmengine miss ``scaled_dot_product_attention``; torch's own counter knows it, except for the
fused operator that runs on CPUs. Elementwise work (norms, activations, softmax) is not counted, as in the literature.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def _attention(query: tuple, key: tuple, value: tuple, *_: Any, **__: Any) -> int:
    """Operations of attention from the shapes: scores, then the weighted sum of the values."""
    batch = prod(query[:-2])
    return 2 * batch * query[-2] * key[-2] * (query[-1] + value[-1])


def _attention_backward(_grad: tuple, query: tuple, key: tuple, value: tuple, *_: Any, **__: Any) -> int:
    """Scores again, then the gradients of values, probabilities, queries and keys: five products."""
    batch = prod(query[:-2])
    return 2 * batch * query[-2] * key[-2] * (3 * query[-1] + 2 * value[-1])


def _sampling(_map: tuple, _places: tuple, *_: Any, out_shape: tuple, **__: Any) -> int:
    """Bilinear sampling, the core of deformable attention: four multiply-adds a sampled value."""
    return 2 * 4 * prod(out_shape)


# What torch's table lacks. An entry of the same name in a later torch is replaced by ours, with the same value.
def _summed_rows(_rows: tuple, indices: tuple, *_: Any, out_shape: tuple, **__: Any) -> int:
    """Weighted sums of rows, the same core on a CPU: one multiply-add a row and channel."""
    return 2 * prod(indices) * out_shape[0][-1]


_FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.grid_sampler_2d: _sampling,
    aten._embedding_bag: _summed_rows,
    aten._embedding_bag_forward_only: _summed_rows,
}
# Operators in ``by_op`` that are the sampling of deformable attention (mmcv's compiled one is not seen by any counter).
SAMPLING_OPS = ('grid_sampler_2d', '_embedding_bag', '_embedding_bag_forward_only')


@dataclass(frozen=True)
class MacReport:
    """Multiply-adds of one run.

    Attributes:
        total: All of them.
        by_module: Module name -> those of the module itself, its children not included; ``''`` is the model's own.
        by_op: Operator name -> its multiply-adds.
    """

    total: int
    by_module: dict[str, int]
    by_op: dict[str, int]

    def of(self, prefix: str) -> int:
        """Multiply-adds of a module and all below it.

        Args:
            prefix: Its name as in ``named_modules``; ``''`` gives the total.
        """
        if not prefix:
            return self.total
        return sum(n for name, n in self.by_module.items() if name == prefix or name.startswith(f'{prefix}.'))


@contextmanager
def _module_hooks(model: nn.Module, enter: Callable[[str], None], leave: Callable[[], None]) -> Iterator[None]:
    """Call ``enter(name)`` and ``leave()`` around the forward of every module."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def count_macs(model: nn.Module, *inputs: Any, call: Callable[[], Any] | None = None) -> MacReport:
    """Count the multiply-adds of one run of a model.

    The model is really run, so it works with any control flow. Whether gradients are wanted is the caller's: under
    ``torch.no_grad()`` this is inference; a ``call`` that ends in ``backward()`` counts that too, including what
    checkpointing computes a second time. What runs backwards belongs to no module: it is counted for ``''``.

    Args:
        model: The model; its mode is left as it is.
        *inputs: What it is called with, for example one tensor ``(B, 3, H, W)``.
        call: What to run instead of ``model(*inputs)``.

    Returns:
        The report, for the whole batch.

    Raises:
        ValueError: If both ``inputs`` and ``call`` are given.
    """
    if call is not None and inputs:
        raise ValueError('count_macs was given both inputs and call; give one of them')
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    by_module: Counter[str] = Counter()
    stack = ['']
    seen = 0

    def settle() -> None:
        # What was counted since the last module boundary belongs to the innermost module that was running.
        nonlocal seen
        total = counter.get_total_flops()
        by_module[stack[-1]] += total - seen
        seen = total

    def enter(name: str) -> None:
        settle()
        stack.append(name)

    def leave() -> None:
        settle()
        stack.pop()

    with _module_hooks(model, enter, leave), counter:
        if call is None:
            model(*inputs)
        else:
            call()
    by_op = {str(op).split('.')[-1]: flops // 2 for op, flops in counter.get_flop_counts()['Global'].items()}
    return MacReport(
        total=counter.get_total_flops() // 2,
        by_module={name: flops // 2 for name, flops in by_module.items() if flops},
        by_op=by_op,
    )
