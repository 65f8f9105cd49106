"""Top-1 of an authors' fine-tuned file with one command, on an ImageNet-layout folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmpretrain')

TOOL = Path(__file__).parents[2] / 'tools' / 'test.py'
CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmitpn.FastITPN', arch=dict(depths=(1, 2, 3), embed_dim=64, num_heads=1), out_indices=(2,),
        final_norm=False),
    head=dict(type='mmitpn.MeanPoolClsHead', num_classes=3, in_channels=64))
data_preprocessor = dict(num_classes=3, mean=[127.0] * 3, std=[64.0] * 3, to_rgb=True)
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ImageNet', data_root={root!r}, split='val', metainfo=dict(classes=('n0', 'n1', 'n2')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
"""


@pytest.fixture
def setting(tmp_path, authors_weights):
    """A config, a fine-tuned file, and the labels that it gives to the pictures."""
    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / 'data' / 'val' / f'n{label}'
        folder.mkdir(parents=True)
        for index in range(2):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f'{index}.png')
    weights = authors_weights(classes=3, norm='fc_norm')
    weights['head.weight'].zero_()
    weights['head.bias'] = torch.tensor([0.0, 1.0, 0.0])  # everything is of class 1
    torch.save({'model': weights}, tmp_path / 'finetuned.pth')
    (tmp_path / 'config.py').write_text(CONFIG.format(root=str(tmp_path / 'data')))
    return tmp_path


def run(folder: Path, *arguments: str) -> int:
    spec = importlib.util.spec_from_file_location('tool_test', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main([str(folder / 'config.py'), *arguments, '--work-dir', str(folder / 'work')])


def test_top_1_of_an_authors_file(setting):
    assert run(setting, str(setting / 'finetuned.pth')) == 0
    metrics = json.loads((setting / 'work' / 'test_metrics.json').read_text())['metrics']
    assert metrics['accuracy/top1'] == pytest.approx(100 / 3, abs=0.01)


def test_a_file_without_the_head_is_refused(setting, authors_weights, capsys):
    torch.save({'model': authors_weights()}, setting / 'backbone.pth')
    assert run(setting, str(setting / 'backbone.pth')) == 2
    error = capsys.readouterr().err
    assert 'final_norm' in error or 'parameters of the model' in error
