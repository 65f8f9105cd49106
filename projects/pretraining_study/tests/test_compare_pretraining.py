"""The comparison of pre-training recipes: which runs it starts, what it scores, the probe and the diagnosis."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmitpn.datasets import generate_shapes
from mmitpn.registry import MODELS

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]
import diagnose
import probe
import training_scores


def value_of(command, name):
    return next(str(word).split('=', 1)[1] for word in command if str(word).startswith(f'{name}='))


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """The script, and the commands that it would have run."""
    spec = importlib.util.spec_from_file_location('tool', PROJECT / 'compare_pretraining.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    commands = []

    def run(command, **_):
        commands.append(command)
        if 'convert_checkpoint' in command[1]:
            Path(command[3]).touch()
            return
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        if 'pretrain_' in command[2]:
            (folder / 'pretrained.pth').touch()
        metric = {'coco/bbox_mAP': 0.25} if 'retinanet' in command[2] else {'mIoU': 50.0}
        (folder / 'test_metrics.json').write_text(json.dumps({'metrics': metric}))

    monkeypatch.setattr(subprocess, 'run', run)
    for place in (module, training_scores):
        monkeypatch.setattr(place, 'find_latest_checkpoint', lambda folder: folder / 'iter_5.pth')
    monkeypatch.setattr(module, 'generate_shapes', lambda folder, *_, **__: folder)
    return module, commands


def test_every_row_has_the_same_fine_tuning_and_each_seed_one_pretraining(tool, tmp_path, capsys):
    module, commands = tool
    arguments = ['--task', 'segmentation', 'detection', '--row', *module.REPORTED, '--seeds', '0', '1']
    arguments += ['--out', str(tmp_path / 'scores.json'), '--work-dir', str(tmp_path / 'runs')]
    arguments += ['--data', str(tmp_path / 'data')]
    plot = tmp_path / 'scores.png'
    for _ in range(2):  # the second time there is nothing to do
        assert module.main([*arguments, '--plot', str(plot)]) == 0
    with Image.open(plot) as image:
        assert image.width > 900
        assert len(np.unique(np.asarray(image.convert('L')))) > 50
    tested = [command for command in commands if command[1] == 'tools/test.py']
    assert len(tested) == 24
    roots = [value_of(command, 'test_dataloader.dataset.data_root') for command in tested]
    assert all(root.startswith(f'{tmp_path}/data/report/') for root in roots)
    commands[:] = [command for command in commands if command[1] != 'tools/test.py']
    configs = [Path(command[2]).stem for command in commands]
    assert configs.count('pretrain_fast-itpn-nano_shapes-mfm') == 2
    assert configs.count('pretrain_fast-itpn-nano_shapes-fast') == 2
    assert configs.count('upernet_fast-itpn-nano_shapes-supervised') == 2
    assert configs.count('upernet_fast-itpn-nano_shapes-50') == 12
    assert configs.count('retinanet_fast-itpn-nano_shapes-50') == 12
    supervised = next(command for command in commands if command[2].endswith('-supervised.py'))
    assert value_of(supervised, 'train_dataloader.dataset.data_root') == f'{tmp_path}/data/unlabeled/{module.ADE}/'
    assert value_of(supervised, 'val_dataloader.dataset.data_root') == f'{tmp_path}/data/unlabeled/{module.ADE}/'
    tuned = [command for command in commands if command[2].endswith('upernet_fast-itpn-nano_shapes-50.py')]
    file = f'{tmp_path}/runs/pretrain_mfm_1/pretrained.pth'
    by_row = {Path(command[command.index('--work-dir') + 1]).name: command for command in tuned}
    for row, parts in (('random', ()), ('mfm_random-pyramid', ('backbone',)), ('mfm', ('backbone', 'neck'))):
        command = by_row[f'mIoU_{row}_1']
        assert value_of(command, 'randomness.seed') == '1'
        assert value_of(command, 'val_dataloader.dataset.data_root') == f'{tmp_path}/data/unlabeled/{module.ADE}/'
        for part in ('backbone', 'neck'):
            name = f'model.{part}.init_cfg'
            assert f'{name}.checkpoint={file}' in command if part in parts else f'{name}=None' in command
    same = {tuple(sorted(w for w in map(str, c) if w.split('=')[0].startswith('train_'))) for c in tuned}
    assert len(same) == 1
    scores = json.loads((tmp_path / 'scores.json').read_text())
    assert set(scores) == {'UperNet, 50 images, mean IoU', 'RetinaNet, 50 images, box AP'}
    assert scores['UperNet, 50 images, mean IoU']['random'] == {'0': 0.5, '1': 0.5}
    assert scores['RetinaNet, 50 images, box AP']['mfm'] == {'0': 0.25, '1': 0.25}
    assert '+0.000' in capsys.readouterr().out


def test_pretraining_alone_and_for_other_numbers_of_steps(tool, tmp_path, capsys):
    module, commands = tool
    arguments = ['--pretrain-only', '--row', *module.REPORTED, 'pixel', '--seeds', '3', '--steps', '40']
    assert module.main([*arguments, '--work-dir', str(tmp_path), '--out', str(tmp_path / 'scores.json')]) == 0
    assert not (tmp_path / 'scores.json').exists()
    files = [str(tmp_path / f'pretrain_{name}_3/pretrained.pth') for name in ('mfm', 'fast', 'supervised', 'pixel')]
    assert capsys.readouterr().out.split() == files
    trained = [command for command in commands if command[1] == 'tools/train.py']
    assert len(trained) == 4
    for command in trained:
        cfg = Config.fromfile(training_scores.ROOT / command[2])
        options = (str(word).split('=', 1) for word in command[command.index('--cfg-options') + 1 :])
        cfg.merge_from_dict({name: int(value) if value.isdecimal() else value for name, value in options})
        assert (cfg.train_cfg.max_iters, cfg.default_hooks.checkpoint.interval, cfg.randomness.seed) == (40, 10, 3)
        warmup, cosine = cfg.param_scheduler
        assert (warmup.end, cosine.begin, cosine.end, cosine.T_max) == (2, 2, 40, 38)


def test_a_run_of_other_settings_is_refused(tool, tmp_path):
    """Weights of fewer steps must not be reported as those of more."""
    module, commands = tool
    options = ['--row', 'mfm', '--seeds', '0', '--pretrain-only', '--work-dir', str(tmp_path / 'runs')]
    module.main([*options, '--steps', '100'])
    module.main([*options, '--steps', '100'])
    assert len(commands) == 1
    for other in (['--steps', '200'], ['--steps', '100', '--pretrain-options', 'optim_wrapper.optimizer.lr=5e-4']):
        with pytest.raises(ValueError, match=r"pretrain_mfm_0 has a run with {'steps': 100, .*give another --work-dir"):
            module.main([*options, *other])
    assert len(commands) == 1
    (tmp_path / 'runs/pretrain_mfm_0/settings.json').unlink()  # weights from another machine
    assert module.main([*options, '--steps', '200']) == 0


@pytest.mark.parametrize('config', sorted(Path(PROJECT / 'configs').glob('pretrain_*.py')), ids=lambda path: path.stem)
def test_pretraining_configs_build_and_learn_from_images(config):
    cfg = Config.fromfile(config)
    model = cfg.model
    if model.form == 'fast':
        model.teacher = 'random'
    model.pop('data_preprocessor')
    with torch.random.fork_rng():
        built = MODELS.build(model).train()
        losses = built.loss(torch.randn(2, 3, 128, 128))
    sum(losses.values()).backward()
    gradient = built.neck.align8.weight.grad
    assert int(torch.linalg.matrix_rank(gradient, rtol=1e-4)) > 16  # the mask token alone would give 4


def test_the_probe_finds_what_features_know(tmp_path):
    """Features that contain the classes give nearly 1, constant ones a class for all."""
    root = generate_shapes(tmp_path / 'shapes', 6, 4, seed=1)
    train, test = (probe.read_split(root / 'ade/ADEChallengeData2016', split) for split in ('training', 'validation'))
    assert train[0].shape == (6, 3, 128, 128)
    assert train[1].shape == (6, 128, 128)
    known = train[1][train[1] != probe.IGNORED]
    assert int(known.max()) < len(probe.CLASSES)

    class Oracle(nn.Module):
        """The labels of images as features; they are looked up by the images."""

        def forward(self, x):
            (labels,) = [y for y, images in ((train[1], train[0]), (test[1], test[0])) if len(images) == len(x)]
            one_hot = nn.functional.one_hot(labels.long().clamp(max=9), 10).permute(0, 3, 1, 2).float()
            return (one_hot[:, :, 2::4, 2::4],)

    conv = probe.fit_probe(Oracle(), *train)
    score = probe.score_probe(Oracle(), conv, *train)
    assert score.textures > 0.7
    assert score.mean_iou > probe.score_probe(Oracle(), nn.Conv2d(10, 9, 1), *train).mean_iou + 0.3
    random = probe.probe(None, train, test)
    assert 0 < random.mean_iou < 0.6


def test_a_split_without_scores_is_not_drawn(tool, tmp_path):
    with pytest.raises(ValueError, match="no scores of the split 'report' yet"):
        tool[0].draw_scores({}, 'report', tmp_path / 'scores.png')


def test_a_missing_dataset_is_named(tmp_path):
    (tmp_path / 'images/training').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match='has no images: mmitpn data shapes'):
        probe.read_split(tmp_path, 'training')


def test_trivial_predictors_and_the_rank():
    masks = torch.zeros(1, 2, 3, dtype=torch.bool)
    masks[0, 0, 0] = True
    target = torch.arange(6.0).view(1, 2, 3, 1)
    copied = diagnose.copy_prediction(target, masks)
    assert copied.flatten().tolist() == [1, 1, 2, 3, 4, 5]  # the first of the two nearest
    rows = torch.randn(500, 8)
    assert diagnose.effective_rank(rows) > 7.5
    assert diagnose.effective_rank(rows[:, :1] * torch.ones(1, 8)) < 1.1


def test_the_diagnosis_of_a_new_network():
    model = diagnose.build(PROJECT.parents[1] / 'configs/quickstart/pretrain_fast-itpn-nano_shapes-mfm.py', None)
    model.init_weights()
    images = torch.randn(2, 3, 128, 128)
    masks = torch.rand(2, 8, 8) < 0.4
    found = diagnose.diagnose(model, images, masks)
    assert set(found) == {'stride4', 'stride8', 'stride16', 'tokens'}
    for one in found.values():
        assert 0.5 < one.within < 1.5
        assert one.rank > 5
        assert one.loss > 0.5 * one.mean
        assert one.gradients['pyramid'] > 0
