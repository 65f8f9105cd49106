"""Multiply-adds (MACs) of a network, exact for matrix products, convolutions and attention.

The operators are counted by torch's ``FlopCounterMode``, with formulas added for the fused attention of CPUs and for
bilinear sampling; the counters of fvcore and mmengine miss ``scaled_dot_product_attention``. Elementwise operators
(norms, activations, softmax) are not counted, as in the literature.
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

import mmitpn.ops.deformable_attention  # noqa: F401 (registers torch.ops.mmitpn)

aten = torch.ops.aten


def _attention(query: tuple, key: tuple, value: tuple, *_: Any, **__: Any) -> int:
    """FLOPs of attention from its shapes: scores, then the weighted sum of the values."""
    batch = prod(query[:-2])
    return 2 * batch * query[-2] * key[-2] * (query[-1] + value[-1])


def _attention_backward(_grad: tuple, query: tuple, key: tuple, value: tuple, *_: Any, **__: Any) -> int:
    """Scores again, then the gradients of values, probabilities, queries and keys: five products."""
    batch = prod(query[:-2])
    return 2 * batch * query[-2] * key[-2] * (3 * query[-1] + 2 * value[-1])


def _sampling(_map: tuple, _grid: tuple, *_: Any, out_shape: tuple, **__: Any) -> int:
    """Bilinear sampling, the core of deformable attention: four multiply-adds per sampled value."""
    return 2 * 4 * prod(out_shape)


def _embedding_bag(_rows: tuple, indices: tuple, *_: Any, out_shape: tuple, **__: Any) -> int:
    """Weighted sums of rows, of mmcv's operators in PyTorch: one multiply-add per row and channel."""
    return 2 * prod(indices) * out_shape[0][-1]


def _deformable_attention(value: tuple, _points: tuple, weights: tuple, *_: Any, **__: Any) -> int:
    """Four multiply-adds per sampled value."""
    return 2 * 4 * prod(weights) * value[-1]


def _deformable_attention_backward(_grad: tuple, *inputs: Any, **__: Any) -> int:
    """The gradients of the values, and those of points and weights."""
    *inputs, value_needed, points_needed = inputs
    return _deformable_attention(*inputs) * (value_needed + points_needed)


# Operators that torch's table lacks. Where a later torch has one of them, these formulas are used.
_FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.grid_sampler_2d: _sampling,
    aten._embedding_bag: _embedding_bag,
    aten._embedding_bag_forward_only: _embedding_bag,
    torch.ops.mmitpn.sample_levels: _deformable_attention,
    torch.ops.mmitpn.sample_levels_backward: _deformable_attention_backward,
}
# Operators in ``by_op`` that are the sampling of deformable attention. No counter sees mmcv's compiled operator.
SAMPLING_OPS = ('grid_sampler_2d', 'sample_levels', 'sample_levels_backward')


@dataclass(frozen=True)
class MacReport:
    """Multiply-adds of one run.

    Attributes:
        total: Of the whole run.
        by_module: Module name -> those of the module itself without its children; ``''`` is the model's own.
        by_op: Operator name -> its multiply-adds.
    """

    total: int
    by_module: dict[str, int]
    by_op: dict[str, int]

    def of(self, prefix: str) -> int:
        """Multiply-adds of a module and its descendants.

        Args:
            prefix: Its name as in ``named_modules``; ``''`` returns the total.
        """
        if not prefix:
            return self.total
        return sum(n for name, n in self.by_module.items() if name == prefix or name.startswith(f'{prefix}.'))


class _NoModuleTracker:
    """Stands in for torch's tracker of modules, which fails without gradients where a parameter is a module's input."""

    parents = frozenset({'Global'})

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, *_: object) -> None:
        """Nothing to restore."""


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

    The model is run, so any control flow works. Under ``torch.no_grad()`` this is inference; a ``call`` that ends in
    ``backward()`` counts the backward pass too, including what checkpointing recomputes. The backward pass belongs to
    no module: it is counted for ``''``.

    Each operator is counted for the innermost module whose forward is running. torch's own counts per module include
    a module's descendants and its backward pass, so that a branch which is called past its parent, or by another part
    of the model (the box branches of DINO), would be counted twice or not at all.

    Args:
        model: The model; its mode is left as it is.
        *inputs: Arguments of the model, for example one tensor ``(B, 3, H, W)``.
        call: A function to run instead of ``model(*inputs)``.

    Returns:
        The report, for the whole batch.

    Raises:
        ValueError: If both ``inputs`` and ``call`` are given.
    """
    if call is not None and inputs:
        raise ValueError('count_macs was given both inputs and call; give one of them')
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    counter.mod_tracker = _NoModuleTracker()
    by_module: Counter[str] = Counter()
    stack = ['']
    seen = 0

    def settle() -> None:
        # What was counted since the last module boundary belongs to the innermost module that is running.
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
