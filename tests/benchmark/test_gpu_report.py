"""The report on a GPU without one: what is planned, what a limit leaves out, what is skipped, what is resumed."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mmitpn import FastITPN
from mmitpn.benchmark.gpu.aims import AIMS, aims_table, row_name
from mmitpn.benchmark.gpu.checks import OPERATORS, check_compiled, check_model, check_operator
from mmitpn.benchmark.gpu.networks import kind_of
from mmitpn.benchmark.gpu.plan import CHECKED, VARIANTS, plan_rows
from mmitpn.benchmark.gpu.report import SECTIONS, GpuReport, PlannedRow, Row, RowSkippedError
from mmitpn.utils import config_folder

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


def open_report(folder: Path, **more: float) -> GpuReport:
    return GpuReport(folder, CPU, Console(quiet=True), **more)


def planned(name: str, call, seconds: float = 0.0) -> PlannedRow:
    return PlannedRow('peak', name, call, seconds)


def fail() -> Row:
    raise RuntimeError('two\nlines')


def test_a_row_that_cannot_be_measured_has_the_reason(tmp_path):
    def refuse() -> Row:
        raise RowSkippedError('no such kernel')

    def miss() -> Row:
        raise ModuleNotFoundError('No module', name='mmdet')

    report = open_report(tmp_path)
    report.run([planned('a', dict), planned('b', fail), planned('c', refuse), planned('d', miss), planned('e', dict)])
    assert report.failed == ['peak: b']
    assert report.rows['peak: b']['failed'] == 'RuntimeError: two lines'
    assert report.rows['peak: c']['skipped'] == 'no such kernel'
    assert report.rows['peak: d']['skipped'] == 'mmdet is not installed'
    assert 'peak: e' in report.rows
    assert 'in fail' in (tmp_path / 'errors.log').read_text()
    assert '| b | RuntimeError: two lines |' in (tmp_path / 'report.md').read_text()


def test_a_second_run_measures_what_is_missing_or_failed(tmp_path):
    calls = []

    def note(name: str) -> Row:
        calls.append(name)
        return {'ms': 1.5}

    rows = [planned(name, partial(note, name)) for name in 'ab']
    open_report(tmp_path).run([rows[0], planned('b', fail)])
    report = open_report(tmp_path)
    report.run([*rows, planned('c', partial(note, 'c'))])
    assert calls == ['a', 'b', 'c']
    assert report.failed == []
    assert json.loads((tmp_path / 'report.json').read_text())['rows']['peak: a']['ms'] == 1.5


def test_a_limit_leaves_out_what_takes_longer_and_ends_a_row(tmp_path):
    report = open_report(tmp_path, deadline=time.time() + 1.0)
    start = time.time()
    report.run([planned('long', fail, 60.0), planned('short', dict), planned('hangs', partial(time.sleep, 60))])
    assert time.time() - start < 10
    assert report.rows['peak: long']['skipped'].startswith('takes about 60 s, and 1 s')
    assert 'skipped' not in report.rows['peak: short']
    assert report.rows['peak: hangs']['skipped'].startswith('stopped after')


def test_reports_of_other_cards_are_not_mixed(tmp_path):
    open_report(tmp_path).run([planned('a', dict)])
    content = json.loads((tmp_path / 'report.json').read_text())
    content['platform']['card'] = 'another'
    (tmp_path / 'report.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"'card': 'another'.*give another folder"):
        open_report(tmp_path)
    (tmp_path / 'report.json').write_text('[]')
    with pytest.raises(ValueError, match='is not a report of this tool'):
        open_report(tmp_path)


def test_aims_are_compared():
    times = {
        row_name('global'): 4.0,
        row_name('gathering'): 2.0,
        row_name('both'): 2.5,
        row_name('global', mode='CUDA graphs', batch=1): 4.3,
    }
    rows = {f'tokens: {name}': {'section': 'tokens', 'ms/image': time} for name, time in times.items()}
    for within in ('yes', 'no'):
        rows[f'waits: {within}'] = {'section': 'waits', 'within': within}
    table = '\n'.join(aims_table(rows))
    assert '| at most 4.4 ms per image | 4 | yes |' in table
    assert '| at least 1.5 times as fast | 2 | yes |' in table
    assert '| at least 2 times as fast | 1.6 | no |' in table
    assert '| at least 0.9 of the rate of batch 8 | 0.93 | yes |' in table
    assert '| 1 of 2 rows within | no |' in table
    assert '\n'.join(aims_table({})).count('not measured') == len(AIMS) + 1


def test_everything_is_planned_once_and_the_aims_within_the_quick_run():
    rows = plan_rows(CUDA, lambda _: None)
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row.section for row in rows} == set(SECTIONS)
    sizes = [key for key in keys if key.startswith('sizes')]
    assert len(sizes) == 4 * 4 * 2 * 2  # architectures, sizes, batches, eager and compiled
    needed = {f'tokens: {name}' for name in (row_name('global'), row_name('gathering'), row_name('both'))}
    needed.add(f'tokens: {row_name("global", mode="CUDA graphs", batch=1)}')
    last = max(keys.index(key) for key in needed)
    assert sum(row.seconds for row in rows[: last + 1]) < 480
    assert [row.section for row in plan_rows(CUDA, lambda _: None, sections=('kernels',))] == ['kernels'] * 4


def test_rows_without_mmdet_or_mmcv_are_skipped(tmp_path, monkeypatch):
    pytest.importorskip('mmengine')
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    report = open_report(tmp_path)
    model = partial(check_model, config_folder() / CHECKED[0], CPU, (64, 64))
    report.run([planned('model', model), planned('nms', partial(check_operator, 'nms', CPU))])
    assert report.rows['peak: model']['skipped'] == 'mmdet is not installed'
    assert report.rows['peak: nms']['skipped'] == 'mmcv is not installed'


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>', 'attention'),
        ('void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>', 'layer norm'),
        ('nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT', 'matrix products'),
        ('void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda>', 'casts'),
        ('void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>', 'copies'),
        ('triton_poi_fused_add_3', 'other'),
    ],
)
def test_kernels_are_grouped_by_what_they_do(name, kind):
    assert kind_of(name) == kind


@pytest.mark.gpu
@pytest.mark.parametrize('name', OPERATORS)
def test_operators_on_a_gpu_equal_the_cpu(name, exact_fp32):
    pytest.importorskip('mmcv')
    check_operator(name, CUDA)


@pytest.mark.gpu
@pytest.mark.parametrize('config', CHECKED)
def test_models_on_a_gpu_equal_the_cpu(config, exact_fp32):
    try:
        row = check_model(config_folder() / config, CUDA, (128, 160))
    except ModuleNotFoundError as error:
        pytest.skip(f'{error.name} is not installed')
    assert row['loss'] < 1e-3


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize('config', [CHECKED[0], CHECKED[1], CHECKED[4]])
def test_compiled_models_on_a_gpu_equal_eager(config, exact_fp32):
    try:
        check_compiled(config_folder() / config, CUDA, (128, 160))
    except ModuleNotFoundError as error:
        pytest.skip(f'{error.name} is not installed')
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize('variant', VARIANTS)
def test_cuda_graphs_of_the_backbone_equal_eager(variant, exact_fp32):
    torch.manual_seed(0)
    backbone = FastITPN('tiny', **VARIANTS[variant] if 'windows' not in variant else {}).cuda().eval()
    images = torch.randn(1, 3, 512, 512, device='cuda')
    compiled = torch.compile(backbone, mode='reduce-overhead', dynamic=False)
    with torch.inference_mode():
        expected = backbone(images)
        for _ in range(3):  # warm-up, capture, replay
            found = [one.clone() for one in compiled(images)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


@pytest.fixture
def exact_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, 'allow_tf32', False)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
