"""Multiply-adds, memory and speed: counts against formulas, peaks, timing in turns and the process that measures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmitpn import FastITPN
from mmitpn.benchmark import worker
from mmitpn.benchmark.case import BenchmarkCase, build_case, set_checkpointing
from mmitpn.benchmark.macs import SAMPLING_OPS, count_macs
from mmitpn.benchmark.memory import gradient_difference, measure_step, peak_tensor_bytes, process_peak_bytes
from mmitpn.benchmark.speed import MatmulPeak, describe_machine, interleave
from mmitpn.ops.deformable_attention import sample_levels

CPU = torch.device('cpu')


def test_models_and_matrix_product_take_turns() -> None:
    order: list[str] = []
    gemm = MatmulPeak(CPU, torch.float32, sides=(16, 32))
    measure = gemm.measure
    gemm.measure = lambda seconds: (order.append('gemm'), measure(seconds))[1]
    timings = interleave(
        [lambda: order.append('a'), lambda: order.append('b')], gemm, seconds=0, min_rounds=2, gemm_seconds=0.01
    )
    assert order == ['a', 'b', 'gemm', 'a', 'b', 'gemm', 'a', 'b', 'gemm']
    assert [len(timing.seconds) for timing in timings] == [2, 2]
    assert len(gemm.by_round()) == 3
    assert all(rate > 0 for rates in gemm.rates.values() for rate in rates)


def test_a_rate_is_that_of_the_products_that_were_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gemm = MatmulPeak(CPU, torch.float32, sides=(8, 16))
    run: list[tuple[int, int]] = []
    monkeypatch.setattr(gemm, '_run', lambda side, times: run.append((side, times)) or times * side / 1000)
    gemm.measure(0.32)  # a half each: 20 products of 8 ms, 10 of 16 ms
    assert run == [(8, 1), (8, 20), (16, 1), (16, 10)]
    assert gemm.rates == {8: [pytest.approx(8**3 / 0.008)], 16: [pytest.approx(16**3 / 0.016)]}


def test_the_peak_is_the_fastest_side() -> None:
    gemm = MatmulPeak(CPU, torch.float32, sides=(8, 16))
    gemm.rates = {8: [1.0, 3.0, 2.0], 16: [5.0, 4.0, 60.0]}
    assert gemm.macs_per_second == 5.0
    assert gemm.by_round() == [5.0, 4.0, 60.0]


@pytest.mark.parametrize('part', ['backbone', 'pyramid', 'backbone+pyramid'])
@pytest.mark.parametrize('train', [False, True])
def test_every_part_runs(part: str, train: bool) -> None:
    model, step = build_case(BenchmarkCase(part, (40, 64), arch='nano', train=train, with_cp=train))
    modules = {'backbone': {'FastITPN'}, 'pyramid': {'ITPNPyramid'}}
    ran, learned = set(), set()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: ran.add(type(module).__name__))
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda _, name=name: learned.add(name))
    step()
    assert ran & {'FastITPN', 'ITPNPyramid'} == set().union(*(modules[name] for name in part.split('+')))
    assert learned == ({name for name, _ in model.named_parameters()} if train else set())
    assert model.training is train
    assert all(parameter.grad is None for parameter in model.parameters())  # a step leaves nothing behind


def test_arguments_of_the_backbone_are_passed_on() -> None:
    case = BenchmarkCase('backbone', (64, 64), arch='nano', backbone={'token_migration': {'keep_ratio': 0.25}})
    model, step = build_case(case)
    assert model.token_reduction.migration.keep_ratio == 0.25
    step()


def test_prediction_of_a_segmentor_slides(tmp_path: Path) -> None:
    pytest.importorskip('mmseg')
    shapes = Path(__file__).parents[2] / 'configs/quickstart/upernet_fast-itpn-nano_shapes.py'
    config = tmp_path / 'slide.py'
    config.write_text(
        f'_base_ = {str(shapes)!r}\n'
        "model = dict(test_cfg=dict(_delete_=True, mode='slide', crop_size=(64, 64), stride=(32, 32)))\n"
    )

    def macs(size: tuple[int, int], *, predict: bool) -> int:
        model, step = build_case(BenchmarkCase('detector', size, config=str(config), predict=predict))
        return count_macs(model, call=step).total

    assert macs((64, 64), predict=True) == macs((64, 64), predict=False)
    assert macs((64, 96), predict=True) == 2 * macs((64, 64), predict=False)


@pytest.mark.parametrize(('dtype', 'expected'), [('fp32', torch.float32), ('bf16', torch.bfloat16)])
def test_layers_run_in_the_dtype_of_the_case(dtype: str, expected: torch.dtype) -> None:
    model, step = build_case(BenchmarkCase('backbone+pyramid', (32, 32), arch='nano', dtype=dtype, train=True))
    seen = set()
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    step()
    assert seen == {expected}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'part': 'neck'}, r"part is 'neck'; allowed: 'backbone'"),
        ({'part': 'backbone', 'dtype': 'fp8'}, r"dtype is 'fp8'; allowed: 'fp32', 'bf16'"),
        ({'part': 'backbone', 'config': 'x.py'}, 'config goes with'),
        ({'part': 'detector'}, 'config goes with'),
        (
            {'part': 'detector', 'config': 'x.py', 'backbone': {'token_migration': {}}},
            'has its arguments in the config',
        ),
        ({'part': 'backbone', 'batch': 0}, 'give integers of at least 1'),
    ],
)
def test_a_wrong_case_is_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BenchmarkCase(**{'size': (32, 32), **settings})


def test_a_job_in_a_fresh_process(tmp_path: Path) -> None:
    """Another module's task gets the cases as they were given; what it prints before it fails is in the error."""
    (tmp_path / 'toy_worker.py').write_text(
        'import sys\n'
        'from mmitpn.benchmark import worker\n'
        "tasks = {'count': lambda job: {'sizes': [case.size for case in worker.load_cases(job)], 'n': job['n']}}\n"
        'worker.main(*sys.argv[1:], tasks=tasks)\n'
    )
    root = Path(worker.__file__).parents[2]
    job = {'module': 'toy_worker', 'environment': {'PYTHONPATH': f'{tmp_path}:{root}'}, 'n': 3}
    cases = [BenchmarkCase('backbone', (32, 48), arch='nano'), BenchmarkCase('pyramid', (64, 64), arch='nano')]
    assert worker.run_job('count', cases, **job) == {'sizes': [[32, 48], [64, 64]], 'n': 3}
    with pytest.raises(RuntimeError, match=r'(?s)the memory of nano backbone, nano pyramid failed .*allowed: count'):
        worker.run_job('memory', cases, **job)


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine['processor']
    assert machine['cores'] >= 1
    assert len(machine['load_average']) == 3


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


def test_deformable_attention_counts_the_same() -> None:
    value, locations, weights = torch.rand(2, 20, 3, 8), torch.rand(2, 7, 3, 1, 4, 2), torch.rand(2, 7, 3, 1, 4)
    report = count_macs(nn.Identity(), call=lambda: sample_levels(value, [[4, 5]], locations, weights))
    assert report.by_op == {'sample_levels': 4 * locations[..., 0].numel() * 8}
    assert set(report.by_op) <= set(SAMPLING_OPS)

    value.requires_grad_()
    report = count_macs(nn.Identity(), call=lambda: sample_levels(value, [[4, 5]], locations, weights).sum().backward())
    assert report.total == 2 * report.by_op['sample_levels']  # only the values need a gradient


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
