"""The command lines that compare and picture token reduction."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools' / 'analysis'


def load(name):
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trainings_are_compared_and_not_done_twice(tmp_path, monkeypatch, capsys):
    commands = []

    def train(command, **_):
        commands.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True)
        (folder / 'metrics.json').write_text(json.dumps({'mIoU': 60.0 if 'global' in folder.name else 59.0}))

    monkeypatch.setattr(subprocess, 'run', train)
    tool, out = load('compare_tokens'), tmp_path / 'scores.json'
    arguments = ['--task', 'seg', '--method', 'global', 'gathering+migration', '--seeds', '0', '1']
    arguments += ['--work-dir', str(tmp_path / 'work'), '--out', str(out)]
    for _ in range(2):
        assert tool.main(arguments) == 0
    assert len(commands) == 4
    assert '--cfg-options' not in commands[0]
    assert 'model.backbone.token_gathering.window_size=4' in commands[1]
    assert 'model.backbone.token_migration.keep_ratio=0.5' in commands[1]
    assert json.loads(out.read_text())['mean IoU on shapes'] == {
        'global': {'0': 0.6, '1': 0.6},
        'gathering+migration': {'0': 0.59, '1': 0.59},
    }
    assert '-0.010' in capsys.readouterr().out


def test_a_picture_of_the_tokens(tmp_path, capsys):
    pytest.importorskip('mmdet')
    from PIL import Image

    image, config = tmp_path / 'image.png', TOOLS.parents[1] / 'configs/quickstart/dino_fast-itpn-nano_shapes.py'
    Image.new('RGB', (150, 100), (90, 120, 30)).save(image)
    arguments = [str(image), '--config', str(config), '--out', str(tmp_path / 'tokens.png')]
    arguments += ['--checkpoint', str(config.parent / 'fast-itpn-nano_shapes.pth')]
    tool = load('visualize_tokens')
    assert tool.main([*arguments, '--cfg-options', 'model.backbone.token_gathering.window_size=4']) == 0
    assert (tmp_path / 'tokens.png').stat().st_size > 10_000
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
