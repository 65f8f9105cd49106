"""Activations of a training step, and peaks of tensors and processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmitpn import FastITPN
from mmitpn.benchmark.case import set_checkpointing
from mmitpn.benchmark.memory import gradient_difference, measure_step, peak_tensor_bytes, process_peak_bytes


def test_counts_each_storage_once_and_no_parameters() -> None:
    layer = nn.Linear(8, 8, bias=False)
    x = torch.rand(16, 8)

    def loss() -> Tensor:
        # Saved: x for the product (and again, a view of it, for the second), and sin's input twice.
        y = layer(x) + layer(x.view(16, 8))
        return (y.sin() + y.cos()).sum()

    assert measure_step(layer, loss).activation_bytes == (x.numel() + 16 * 8) * 4


def test_a_checkpointed_block_keeps_its_input_only() -> None:
    layer = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    x = torch.rand(16, 8)
    report = measure_step(layer, lambda: checkpoint(layer, x, use_reentrant=False).sum())
    assert report.activation_bytes == x.numel() * 4


def test_peak_of_the_tensors_of_a_call() -> None:
    def call() -> Tensor:
        first = torch.zeros(1000, 1000)  # 4 MB
        del first
        second = torch.zeros(500, 1000)  # 2 MB
        return second + 1

    torch.zeros(8000, 1000)  # of another call
    assert peak_tensor_bytes(call) == pytest.approx(4e6, rel=0.01)


def test_what_the_graph_has_dropped_is_not_counted() -> None:
    layer = nn.Linear(4, 4, bias=False)
    x = torch.rand(2, 4)

    def loss() -> Tensor:
        layer(torch.rand(1000, 4)).sum()  # its graph is gone when the line ends
        return layer(x).sum()

    assert measure_step(layer, loss).activation_bytes == x.numel() * 4


def test_checkpointing_the_backbone_saves_and_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    backbone = FastITPN('nano', drop_path_rate=0.3).train()
    x = torch.rand(2, 3, 64, 96)

    def loss() -> Tensor:
        torch.manual_seed(1)
        return sum(y.square().mean() for y in backbone(x))

    without = measure_step(backbone, loss)
    assert set_checkpointing(backbone, on=True) == ['']
    with_cp = measure_step(backbone, loss)
    assert with_cp.activation_bytes < 0.5 * without.activation_bytes
    difference, _ = gradient_difference(without.gradients, with_cp.gradients)
    assert difference < 1e-5
    assert with_cp.loss == pytest.approx(without.loss)


def test_gradient_difference_names_the_parameter() -> None:
    first = {'a': torch.tensor([1.0, 2.0]), 'b': torch.tensor([4.0])}
    second = {'a': torch.tensor([1.0, 2.0]), 'b': torch.tensor([5.0])}
    assert gradient_difference(first, second) == (0.25, 'b')
    assert gradient_difference(first, {**second, 'a': torch.tensor([1.0, float('nan')])})[0] != 0
    with pytest.raises(ValueError, match=r"one step only, such as 'b'"):
        gradient_difference(first, {'a': first['a']})


def test_a_loss_that_is_not_finite_is_refused() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='one finite number'):
        measure_step(layer, lambda: layer(torch.ones(1, 2)).sum() * float('nan'))


def test_peak_is_at_least_what_is_allocated_now() -> None:
    allocated = bytearray(b'x' * 30_000_000)
    peak = process_peak_bytes()
    assert len(allocated) < peak < 10**12
    statm = Path('/proc/self/statm')
    if statm.is_file():
        assert peak >= int(statm.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') * 0.9
