"""Multiply-adds, against a formula written out by hand and the published figures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmitpn import FastITPN
from mmitpn.benchmark.macs import SAMPLING_OPS, count_macs
from mmitpn.ops.deformable_attention import sample_on_cpu


def test_equals_the_formula() -> None:
    arch = {'depths': (1, 1, 5), 'embed_dim': 192, 'num_heads': 3}
    backbone = FastITPN(arch, img_size=64).eval()
    fine, middle, main, depth = 48, 96, 192, 5
    at4, at8, at16 = 16 * 16, 8 * 8, 4 * 4
    stem = at4 * (3 * 4 * 4) * fine
    stage1 = at4 * 2 * fine * (3 * fine)
    merge1 = at8 * (4 * fine) * middle
    stage2 = at8 * 2 * middle * (3 * middle)
    merge2 = at16 * (4 * middle) * main
    attention = at16 * 4 * main**2 + 2 * at16 * at16 * main
    feed_forward = at16 * 3 * main * (3 * main)
    with torch.no_grad():
        report = count_macs(backbone, torch.zeros(1, 3, 64, 64))
    assert report.total == stem + stage1 + merge1 + stage2 + merge2 + depth * (attention + feed_forward)
    assert report.of('patch_embed') == stem
    assert report.of('stage2') == stage2
    assert report.of('blocks') == depth * (attention + feed_forward)
    assert report.of('blocks.1') == attention + feed_forward
    assert report.of('') == report.total


@pytest.mark.parametrize(
    ('arch', 'giga'),
    [
        ('tiny', 5.34),
        pytest.param('small', 8.93, marks=pytest.mark.slow),
        pytest.param('base', 19.05, marks=pytest.mark.slow),
        pytest.param('large', 65.74, marks=pytest.mark.slow),
    ],
)
def test_published_sizes(arch: str, giga: float) -> None:
    with torch.inference_mode():
        report = count_macs(FastITPN(arch).eval(), torch.zeros(1, 3, 224, 224))
    assert report.total / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.parametrize('guard', [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_attention_is_counted_in_every_mode(guard: type, dtype: torch.dtype) -> None:
    query, key = torch.rand(2, 3, 10, 8, dtype=dtype), torch.rand(2, 3, 20, 8, dtype=dtype)
    with guard():
        report = count_macs(nn.Identity(), call=lambda: F.scaled_dot_product_attention(query, key, key))
    assert report.total == 2 * (2 * 3 * 10 * 20 * 8)


def test_backward_of_attention_is_five_products() -> None:
    query, key, value = (torch.rand(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 16 * 16 * 8
    report = count_macs(nn.Identity(), call=lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
    assert report.total == (2 + 5) * product


def test_sampling_counts_four_per_value() -> None:
    features, grid = torch.rand(1, 6, 9, 9), torch.rand(1, 4, 5, 2)
    report = count_macs(nn.Identity(), call=lambda: F.grid_sample(features, grid, align_corners=False))
    assert report.by_op == {'grid_sampler_2d': 4 * 6 * 4 * 5}


def test_sampling_on_a_cpu_counts_the_same() -> None:
    value, locations, weights = torch.rand(2, 20, 3, 8), torch.rand(2, 7, 3, 1, 4, 2), torch.rand(2, 7, 3, 1, 4)
    report = count_macs(nn.Identity(), call=lambda: sample_on_cpu(value, [[4, 5]], locations, weights))
    assert report.total == 4 * locations[..., 0].numel() * 8
    assert set(report.by_op) <= set(SAMPLING_OPS)


def test_a_module_called_past_its_parent_is_still_counted_for_itself() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList([nn.Linear(4, 5)])

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head.branches[0](x) @ torch.ones(5, 2)

    report = count_macs(Detector(), torch.ones(3, 4))
    assert report.of('head') == 3 * 4 * 5
    assert report.by_module[''] == 3 * 5 * 2


@pytest.mark.parametrize('guard', [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_parameter_may_be_the_input_of_a_module(guard: type) -> None:
    """As the queries of DINO are, which torch's own tracker of modules does not take without gradients."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.layer = nn.Parameter(torch.rand(3, 4)), nn.Linear(4, 5)

        def forward(self) -> torch.Tensor:
            return self.layer(self.queries)

    with guard():
        report = count_macs(Decoder())
    assert (report.total, report.of('layer')) == (3 * 4 * 5, 3 * 4 * 5)


def test_hooks_are_gone_afterwards_even_after_a_failure() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        count_macs(layer, torch.ones(1, 5))
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_inputs_and_call_exclude_each_other() -> None:
    with pytest.raises(ValueError, match='give one of them'):
        count_macs(nn.Identity(), torch.ones(1), call=lambda: None)
