"""The command lines that compare and picture token reduction."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch

from mmitpn.analysis import trainings

TOOLS = Path(__file__).parents[2] / 'tools' / 'analysis'


def load(name):
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compare_tokens(monkeypatch):
    """The tool, and the commands that it would have run."""
    commands = []

    def run(command, **_):
        commands.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        score = 60.0 if 'global' in str(folder) else 59.0
        metrics = {'coco/bbox_mAP': score / 100, 'mIoU': score}
        (folder / 'test_metrics.json').write_text(json.dumps({'metrics': metrics}))

    tool = load('compare_tokens')
    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setattr(trainings, 'find_resumable', lambda folder: folder / 'iter_5.pth')
    monkeypatch.setattr(trainings, 'TEST_IMAGES', 1)
    return tool, commands


def test_trainings_are_compared_and_not_done_twice(compare_tokens, tmp_path, capsys):
    tool, commands = compare_tokens
    out, images = tmp_path / 'scores.json', tmp_path / 'images'
    arguments = ['--task', 'seg', '--method', 'global', 'gathering+migration', '--seeds', '0', '1']
    arguments += ['--work-dir', str(tmp_path / 'work'), '--out', str(out), '--test-set', str(images)]
    for _ in range(2):
        assert tool.main(arguments) == 0
    assert [command[1] for command in commands] == ['tools/quickstart.py', 'tools/test.py'] * 4
    assert '--cfg-options' not in commands[0]
    for command in commands[2:4]:
        assert 'model.backbone.token_gathering.window_size=4' in command
        assert 'model.backbone.token_migration.keep_ratio=0.5' in command
    # Training knows nothing of the images that all are evaluated on.
    assert not any(str(images) in part for part in commands[2])
    (root,) = (part.split('=')[1] for part in commands[3] if part.startswith('test_dataloader.dataset.data_root'))
    assert Path(root, 'images/validation').is_dir()
    assert json.loads(out.read_text())['mean IoU on shapes'] == {
        'global': {'0': 0.6, '1': 0.6},
        'gathering+migration': {'0': 0.59, '1': 0.59},
    }
    assert '-0.010' in capsys.readouterr().out


def test_photographs_are_trained_and_tested_by_the_tools(compare_tokens, tmp_path, capsys):
    tool, commands = compare_tokens
    arguments = ['--task', 'photos', '--method', 'gathering', '--seeds', '7', '--photos', str(tmp_path)]
    assert tool.main([*arguments, '--work-dir', str(tmp_path / 'work'), '--out', str(tmp_path / 'scores.json')]) == 0
    (train, test) = commands
    assert train[1] == 'tools/train.py'
    assert test[1] == 'tools/test.py'
    assert test[3].endswith('iter_5.pth')
    assert 'randomness.seed=7' in train
    for command in commands:
        assert {f'{part}_dataloader.dataset.data_root={tmp_path}/' for part in ('train', 'test')} <= set(command)
        assert 'model.backbone.token_gathering.window_size=10' in command
    assert '0.590' in capsys.readouterr().out


@pytest.mark.slow
def test_settings_are_tried_on_a_trained_model(tmp_path, capsys, monkeypatch):
    pytest.importorskip('mmdet')
    from mmitpn.datasets import generate_shapes

    config = TOOLS.parents[1] / 'configs/quickstart/dino_fast-itpn-nano_shapes.py'
    data = generate_shapes(tmp_path / 'shapes', num_train=2, num_val=3) / 'coco'
    monkeypatch.chdir(tmp_path)
    tool = load('token_accuracy')
    checkpoint = tmp_path / 'trained.pth'
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    cfg = Config.fromfile(config)
    init_default_scope('mmdet')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': {}}, checkpoint)
    options = [f'test_dataloader.dataset.data_root={data}/', 'test_dataloader.num_workers=0']
    options += [
        'test_dataloader.persistent_workers=False',
        'test_evaluator.ann_file=' + str(data / 'annotations/instances_val2017.json'),
    ]
    arguments = [str(config), str(checkpoint), '--window-size', '4', '--num-tokens', '1', '--cfg-options', *options]
    assert tool.run_command(tool.compare, tool.parse_args(arguments)) == 0
    shown = capsys.readouterr().out
    for name in ('global', 'gathering', 'migration, keep 0.5', 'gathering+migration, keep 0.5', 'bbox_mAP'):
        assert name in shown
    others = [*arguments[:2], '--set', "token_gathering={'window_size':99999}", '--cfg-options', *options]
    assert tool.run_command(tool.compare, tool.parse_args(others)) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith('│')]
    assert shown[-2].split('│')[2:] == shown[-1].split('│')[2:]  # one window: the same figures


def test_a_setting_on_the_command_line(capsys):
    tool = load('token_accuracy')
    text = "token_migration={'score':'mean','at':(1,)},token_gathering={}"
    assert tool.parse_setting(text) == {'token_migration': {'score': 'mean', 'at': (1,)}, 'token_gathering': {}}
    for wrong in ('', 'x={}', 'token_migration=1', 'token_migration={', 'token_migration=open("x")'):
        with pytest.raises(SystemExit):
            tool.parse_args(['a.py', 'b.pth', '--set', wrong])
        assert 'give one or both of token_migration={...},token_gathering={...}' in capsys.readouterr().err


def test_a_picture_of_the_tokens(tmp_path, capsys):
    pytest.importorskip('mmdet')
    from PIL import Image

    image, config = tmp_path / 'image.png', TOOLS.parents[1] / 'configs/quickstart/dino_fast-itpn-nano_shapes.py'
    Image.new('RGB', (150, 100), (90, 120, 30)).save(image)
    arguments = [str(image), '--config', str(config), '--out', str(tmp_path / 'tokens.png')]
    arguments += ['--checkpoint', str(config.parent / 'fast-itpn-nano_shapes.pth')]
    tool = load('visualize_tokens')
    assert tool.main([*arguments, '--cfg-options', 'model.backbone.token_gathering.window_size=4']) == 0
    with Image.open(tmp_path / 'tokens.png') as drawn:
        colors = {color: count for count, color in drawn.convert('RGB').getcolors(2**24)}
    assert colors[(90, 120, 30)] > 10_000  # the image itself
    assert len(colors) > 100  # and the attention over it
    assert tool.main(arguments) == 2
    assert 'no token_migration and no token_gathering here' in capsys.readouterr().err
    assert tool.main(['nowhere.jpg', *arguments[1:]]) == 2
    assert 'no picture nowhere.jpg' in capsys.readouterr().err


def test_distances(tmp_path, capsys):
    from PIL import Image

    weights = TOOLS.parents[1] / 'configs/quickstart/fast-itpn-nano_shapes.pth'
    tool = load('token_distance')
    arguments = ['--images', str(tmp_path), '--weights', str(weights), '--arch', 'nano', '--img-size', '128']
    arguments += ['--window-size', '4', '--num-tokens', '16', '--keep', '1']
    assert tool.main(arguments) == 2
    assert 'no .jpg or .png' in capsys.readouterr().err
    Image.effect_noise((100, 100), 60).save(tmp_path / 'noise.png')
    assert tool.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count('0.000') >= 15  # all tokens kept, and as many gathering tokens as tokens: global attention
