"""The command lines of tools/analysis."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

TOOLS = Path(__file__).parents[2] / 'tools' / 'analysis'


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small RetinaNet of mmdet, written out."""
    pytest.importorskip('mmdet')
    path = tmp_path_factory.mktemp('configs') / 'retinanet_r18.py'
    path.write_text(
        """
default_scope = 'mmdet'
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor'),
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3),
                  init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=32, start_level=1,
              add_extra_convs='on_output', num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=32, stacked_convs=1, feat_channels=32,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                              ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True), loss_bbox=dict(type='L1Loss')),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
                   sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms_pre=10, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5))
"""
    )
    return path


def test_get_flops_counts_by_part(retinanet: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / 'new' / 'flops.json'
    assert load('get_flops').main([str(retinanet), '--shape', '64', '96', '--json', str(out)]) == 0
    figures = json.loads(out.read_text())
    parts = figures['parts']
    assert figures['shape'] == [64, 96]
    assert {'backbone', 'neck', 'bbox_head'} <= set(parts)
    assert sum(part['macs'] for part in parts.values()) == figures['macs']
    assert sum(part['parameters'] for part in parts.values()) == figures['parameters']
    # ResNet-18 without its classifier: 11.177 M parameters; 1.814 GMAC at 224 x 224, here fewer pixels.
    assert parts['backbone']['parameters'] == 11_176_512
    assert parts['backbone']['macs'] == pytest.approx(1.8136e9 * 64 * 96 / 224**2, rel=1e-3)
    shown = capsys.readouterr().out
    assert 'backbone' in shown
    assert 'total' in shown


def test_get_flops_lists_deeper_parts(retinanet: Path) -> None:
    figures = load('get_flops').count_config(retinanet, (64, 64), depth=2)
    below = [part['macs'] for name, part in figures['parts'].items() if name.startswith('backbone.')]
    assert sum(below) == figures['parts']['backbone']['macs'] > 0


def test_a_missing_config_is_reported(capsys: pytest.CaptureFixture) -> None:
    assert load('get_flops').main(['nowhere.py']) == 2
    assert 'nowhere.py' in capsys.readouterr().err
    assert load('activation_memory').main(['--config', 'nowhere.py']) == 2
    assert 'nowhere.py' in capsys.readouterr().err


def test_activation_memory_compares(retinanet: Path, tmp_path: Path) -> None:
    out = tmp_path / 'memory.json'
    arguments = ['--config', str(retinanet), '--size', '64', '--batch', '2', '--json', str(out)]
    assert load('activation_memory').main(arguments) == 0
    figures = json.loads(out.read_text())
    assert figures['bytes_with_cp'] < figures['bytes_without']
    assert figures['saved'] == 1 - figures['bytes_with_cp'] / figures['bytes_without']
    assert figures['gradient_difference'] < 1e-4
    assert any(name.startswith('backbone') for name in figures['checkpointed_modules'])


def test_benchmark_groups_the_parts_of_one_size() -> None:
    tool = load('benchmark')
    line = '--part backbone pyramid detector --arch nano tiny --size 64 32x48 --config a.py --train'
    groups = tool.group_cases(tool.parse_args(line.split()))
    assert [[case.part for case in group] for group in groups] == [['backbone', 'pyramid']] * 4 + [['detector']] * 2
    assert [(group[0].arch, group[0].size) for group in groups[:4]] == [
        ('nano', (64, 64)),
        ('nano', (32, 48)),
        ('tiny', (64, 64)),
        ('tiny', (32, 48)),
    ]
    assert all(case.train for group in groups for case in group)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ('--part detector', 'go together'),
        ('--config a.py', 'go together'),
        ('--with-cp', 'add --train'),
        ('--train --predict', 'exclude each other'),
        ('--size 12y', 'give HxW'),
        ('--batch 0', 'must be positive'),
        ('--compare nowhere.json', 'no file nowhere.json'),
        ('--part head', 'invalid choice'),
    ],
)
def test_benchmark_refuses(arguments: str, words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        load('benchmark').parse_args(arguments.split())
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def row(name: str, seconds: float, peak: int, **more: int) -> dict:
    return {
        'name': name,
        'size': [64, 64],
        'batch': 1,
        'dtype': 'fp32',
        'mode': 'inference',
        'parameters': 1_000_000,
        'macs': 2_000_000_000,
        'images_per_second': 1 / seconds,
        'median_seconds': seconds,
        'peak_bytes': peak,
        'gemm_share': 0.5,
        'gemm_share_by_round': [0.4, 0.6],
        **more,
    }


def test_benchmark_compares_with_an_earlier_report() -> None:
    from rich.console import Console

    tool = load('benchmark')
    now = [row('nano backbone', 0.3, 10**9), row('new', 0.1, 10**9, cuda_peak_bytes=5 * 10**8)]
    written = io.StringIO()
    Console(width=160, file=written).print(tool.make_table(now, [row('nano backbone', 0.2, 2 * 10**9)]))
    text = written.getvalue()
    assert '1.50, 0.50' in text
    assert 'not there' in text
    assert '0.50 GB' in text
    assert '50% (40% to 60%)' in text


@pytest.mark.slow
def test_benchmark_measures(tmp_path: Path) -> None:
    out = tmp_path / 'report.json'
    arguments = ['--arch', 'nano', '--part', 'backbone', 'pyramid', '--size', '32', '--seconds', '0.1', '--rounds', '2']
    assert load('benchmark').main([*arguments, '--threads', '1', '--json', str(out)]) == 0
    rows = json.loads(out.read_text())['rows']
    assert [one['name'] for one in rows] == ['nano backbone', 'nano pyramid']
    for one in rows:
        assert one['imports_bytes'] <= one['built_bytes'] <= one['peak_bytes'] < 4 * 10**9
        assert one['macs'] > 0
        assert 0 < one['gemm_share'] < 1.5
        assert len(one['seconds']) >= 2
        assert one['gemm']['threads'] == 1


@pytest.mark.slow
def test_benchmark_reports_why_a_measurement_failed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / 'empty.py'
    config.write_text('x = 1\n')
    assert load('benchmark').main(['--part', 'detector', '--config', str(config), '--size', '32']) == 1
    assert 'has no `model`' in capsys.readouterr().out.replace('\n', ' ')


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / 'tools/analysis/stage_times.py'
    spec = importlib.util.spec_from_file_location('tool_stage_times', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """A clock that a part advances by its own time."""

    def __init__(self):
        self.now = 0.0

    def work(self, seconds):
        self.now += seconds


class Part(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.weight = nn.Linear(1, 1)

    def forward(self):
        self.clock.work(self.seconds)


class Model(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.backbone, self.neck = Part(clock, 3.0), Part(clock, 1.0)
        self.panoptic_head = nn.Module()
        self.panoptic_head.predictor = Part(clock, 2.0)
        self.calls = 0

    def forward(self):
        self.calls += 1
        self.backbone()
        self.neck()
        self.panoptic_head.predictor()
        self.panoptic_head.predictor()
        self.clock.work(2.0 if self.calls > 1 else 100.0)  # the first run is not timed


@pytest.fixture
def model(monkeypatch, tool):
    clock = Clock()
    monkeypatch.setattr(tool, 'now', lambda _: clock.now)
    return Model(clock)


def test_fractions_of_the_parts_that_are_there(tool, model):
    fractions = tool.stage_fractions(model, model, rounds=2)
    assert fractions == pytest.approx({'backbone': 0.3, 'neck': 0.1, 'decoder': 0.4, 'rest': 0.2})
    assert model.calls == 3


def test_the_model_is_as_before(tool, model):
    tool.stage_fractions(model, model, rounds=1)
    assert 'forward' not in vars(model.backbone)
    model.backbone.forward = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        tool.stage_fractions(model, model, rounds=1)


def test_a_part_that_fails_is_put_back_too(tool, model):
    def fail():
        if model.calls:
            raise RuntimeError('broken')
        model.calls += 1

    with pytest.raises(RuntimeError, match='broken'):
        tool.stage_fractions(model, fail, rounds=1)
    assert 'forward' not in vars(model.backbone)


@pytest.mark.slow
def test_gpu_report_in_miniature(tmp_path, capsys):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    report = load('gpu_report')
    command = ['--out', str(tmp_path), '--device', 'cpu']
    assert report.main(command) == 0
    rows = json.loads((tmp_path / 'report.json').read_text())['rows']
    assert max(row['gradients'] for row in rows.values() if row['section'] in ('operators', 'models')) < 1e-6
    assert rows['attention: encoder, triton, fp32']['skipped']
    skipped = {row['section'] for row in rows.values() if 'skipped' in row}
    assert skipped <= {'peak', 'attention'}  # kernels of GPUs
    for row in rows.values():
        assert 'skipped' in row or row['section'] in ('operators', 'models') or len(row) > 3, row
    written = (tmp_path / 'report.md').read_text()
    assert '| roi_align |' in written
    assert written.count('not measured') == 5  # the aims
    capsys.readouterr()
    assert report.main([*command, '--minutes', '0.2']) == 0
    assert 'TFLOP/s' not in capsys.readouterr().out  # what is there is not measured again


def test_gpu_report_needs_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(SystemExit):
        load('gpu_report').main(['--out', str(tmp_path)])
    assert 'torch sees no CUDA device' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--batch', '0'], r'--batch is 0 and --objects \[3\]; give a batch of at least 1, objects of 0'),
        (['--objects', '1', '2', '3'], r'--objects has 3 numbers; give one, or one for each of the 2 images'),
    ],
)
def test_waits_of_no_batch(arguments, message, capsys):
    with pytest.raises(SystemExit):
        load('count_waits').parse_args(['config.py', *arguments])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_waits_are_counted_by_config() -> None:
    pytest.importorskip('mmpretrain')
    config = TOOLS.parents[1] / 'configs/quickstart/pretrain_fast-itpn-nano_shapes-mfm.py'
    arguments = [str(config), str(config), '--size', '64', '--objects', '2', '0']
    command = [sys.executable, str(TOOLS / 'count_waits.py'), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if 'needs the Python backends' in result.stderr:
        pytest.skip(result.stderr)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if 'waits' in line or ' x ' in line]
    assert lines[0] == 'pretrain_fast-itpn-nano_shapes-mfm: 2 x 64x64, objects [2, 0]'
    assert re.fullmatch(r'  forward \+ loss: 0 waits, 0 copies, [1-9]\d+ operators', lines[1])
    assert re.fullmatch(r'  backward \+ step: 0 waits, 0 copies, [1-9]\d+ operators', lines[2])
    assert lines[3:] == lines[:3]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [('--quick --minutes 3', 'leave one out'), ('--minutes 0', 'give more than 0'), ('--only speed', 'invalid choice')],
)
def test_gpu_report_refuses(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit):
        load('gpu_report').main(['--out', str(tmp_path), '--device', 'cpu', *arguments.split()])
    assert words in capsys.readouterr().err
