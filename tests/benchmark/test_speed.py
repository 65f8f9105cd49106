"""Timing in turns, benchmark cases and the process that measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmitpn.benchmark import worker
from mmitpn.benchmark.case import BenchmarkCase, build_case
from mmitpn.benchmark.macs import count_macs
from mmitpn.benchmark.speed import MatmulPeak, describe_machine, interleave

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
