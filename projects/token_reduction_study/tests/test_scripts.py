"""The scripts of the study."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import training_scores

PROJECT = Path(__file__).parents[1]
QUICKSTART = PROJECT.parents[1] / 'configs/quickstart'


@pytest.fixture
def compare_tokens(load_script, monkeypatch):
    """The script, and the commands that it would have run."""
    commands = []

    def run(command, *, env, **_):
        assert str(PROJECT) in env['PYTHONPATH'].split(os.pathsep)
        commands.append(command)
        folder = Path(command[command.index('--work-dir') + 1])
        folder.mkdir(parents=True, exist_ok=True)
        score = 60.0 if 'global' in str(folder) else 59.0
        metrics = {'coco/bbox_mAP': score / 100, 'mIoU': score}
        (folder / 'test_metrics.json').write_text(json.dumps({'metrics': metrics}))

    tool = load_script('compare_tokens')
    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setattr(training_scores, 'find_latest_checkpoint', lambda folder: folder / 'iter_5.pth')
    monkeypatch.setattr(training_scores, 'TEST_IMAGES', 1)
    return tool, commands


def test_training_runs_are_compared_and_not_repeated(compare_tokens, tmp_path, capsys):
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


def test_methods_of_others_are_trained_by_a_config_that_imports_them(compare_tokens, tmp_path):
    pytest.importorskip('mmdet')
    from mmengine.config import Config

    tool, commands = compare_tokens
    arguments = ['--task', 'seg', '--method', 'gathering+ToMe', '--seeds', '0', '--work-dir', str(tmp_path / 'work')]
    assert tool.main([*arguments, '--out', str(tmp_path / 'scores.json'), '--test-set', str(tmp_path / 'images')]) == 0
    train, test = commands
    config = train[train.index('--config') + 1]
    assert test[2] == config
    cfg = Config.fromfile(config)
    assert cfg.custom_imports['imports'] == ['token_study']
    assert cfg.model.type == Config.fromfile(QUICKSTART / 'upernet_fast-itpn-nano_shapes.py').model.type
    assert 'model.backbone.token_migration.type=TokenMerging' in train


@pytest.mark.slow
def test_settings_are_tried_on_a_trained_model(load_script, tmp_path, capsys, monkeypatch):
    pytest.importorskip('mmdet')
    from mmitpn.datasets import generate_shapes

    config = QUICKSTART / 'dino_fast-itpn-nano_shapes.py'
    data = generate_shapes(tmp_path / 'shapes', num_train=2, num_val=3) / 'coco'
    monkeypatch.chdir(tmp_path)
    tool = load_script('token_accuracy')
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


def test_a_setting_on_the_command_line(load_script, capsys):
    tool = load_script('token_accuracy')
    text = "token_migration={'score':'mean','at':(1,)},token_gathering={}"
    assert tool.parse_setting(text) == {'token_migration': {'score': 'mean', 'at': (1,)}, 'token_gathering': {}}
    for wrong in ('', 'x={}', 'token_migration=1', 'token_migration={', 'token_migration=open("x")'):
        with pytest.raises(SystemExit):
            tool.parse_args(['a.py', 'b.pth', '--set', wrong])
        assert 'give one or both of token_migration={...},token_gathering={...}' in capsys.readouterr().err


def test_a_drawing_of_the_tokens(load_script, tmp_path, capsys):
    pytest.importorskip('mmdet')
    from PIL import Image

    image, config = tmp_path / 'image.png', QUICKSTART / 'dino_fast-itpn-nano_shapes.py'
    Image.new('RGB', (150, 100), (90, 120, 30)).save(image)
    arguments = [str(image), '--config', str(config), '--out', str(tmp_path / 'tokens.png')]
    arguments += ['--checkpoint', str(config.parent / 'fast-itpn-nano_shapes.pth')]
    tool = load_script('visualize_tokens')
    assert tool.main([*arguments, '--cfg-options', 'model.backbone.token_gathering.window_size=4']) == 0
    with Image.open(tmp_path / 'tokens.png') as drawn:
        colors = {color: count for count, color in drawn.convert('RGB').getcolors(2**24)}
    assert colors[(90, 120, 30)] > 10_000  # the image itself
    assert len(colors) > 100  # and the attention over it
    assert tool.main(arguments) == 2
    assert 'no token_migration and no token_gathering here' in capsys.readouterr().err
    assert tool.main(['nowhere.jpg', *arguments[1:]]) == 2
    assert 'no image nowhere.jpg' in capsys.readouterr().err


def test_a_pure_python_config_is_drawn_too(load_script, tmp_path):
    """A config where a type is a class, of a segmentor."""
    pytest.importorskip('mmseg')
    from PIL import Image

    image, config, out = (tmp_path / name for name in ('image.png', 'config.py', 'tokens.png'))
    Image.new('RGB', (150, 100), (90, 120, 30)).save(image)
    config.write_text(
        """
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor

from mmitpn import FastITPN

default_scope = 'mmseg'
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor),
    backbone=dict(type=FastITPN, arch='nano'),
    decode_head=dict(type=FCNHead, in_channels=192, in_index=2, channels=8, num_classes=2, num_convs=1),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)]
test_dataloader = dict(dataset=dict(pipeline=pipeline))
"""
    )
    arguments = [str(image), '--config', str(config), '--out', str(out)]
    options = ['--cfg-options', 'model.backbone.token_migration.keep_ratio=0.5']
    assert load_script('visualize_tokens').main([*arguments, *options]) == 0
    with Image.open(out) as drawn:
        colors = {color: count for count, color in drawn.convert('RGB').getcolors(2**24)}
    assert colors[(90, 120, 30)] > 10_000  # kept
    assert colors[tuple(int(value * 0.22) for value in (90, 120, 30))] > 1_000  # dropped


NOT_CHECKPOINTS = {
    'page.pth': ('<!DOCTYPE html><title>Log in</title>', 'is a web page, not the weights'),
    'empty.pth': ('', 'is empty (0 bytes)'),
    'text.pth': ('epoch 1: loss 0.3\n', "is not a checkpoint: it starts with b'epoch 1"),
}
CONFIG = """
default_scope = 'mmengine'
model = dict(
    type='ImageClassifier', backbone=dict(type='mmitpn.FastITPN', arch='nano', img_size=32, out_indices=(2,)),
    neck=dict(type='mmitpn.ITPNPyramid', in_channels=(48, 96, 192)))
test_dataloader = dict(dataset=dict(type='None', pipeline=[]))
test_evaluator = dict()
test_cfg = dict()
"""


@pytest.mark.parametrize('name', ['token_accuracy', 'token_distance', 'visualize_tokens'])
def test_a_file_that_is_no_checkpoint_is_reported(load_script, tmp_path, monkeypatch, capsys, name):
    pytest.importorskip('mmdet')
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    Image.new('RGB', (64, 64)).save('image.png')
    Path('config.py').write_text(CONFIG)
    tool = load_script(name)
    for file, (text, message) in NOT_CHECKPOINTS.items():
        Path(file).write_text(text)
        if name == 'token_accuracy':
            status = tool.run_command(tool.compare, tool.parse_args(['config.py', file, '--work-dir', 'out']))
        elif name == 'token_distance':
            status = tool.main(['--images', '.', '--weights', file, '--arch', 'nano', '--number', '1'])
        else:
            config = QUICKSTART / 'dino_fast-itpn-nano_shapes.py'
            status = tool.main(['image.png', '--config', str(config), '--checkpoint', file, '--out', 'out.png'])
        errors = capsys.readouterr().err
        lines = [line for line in errors.splitlines() if line.startswith('error: ')]
        assert (status, len(lines)) == (2, 1), f'{file}: {errors}'
        assert message in lines[0]
        assert 'Traceback' not in errors
    assert not list(tmp_path.glob('out*'))


def test_distances(load_script, tmp_path, capsys):
    from PIL import Image

    weights = QUICKSTART / 'fast-itpn-nano_shapes.pth'
    tool = load_script('token_distance')
    arguments = ['--images', str(tmp_path), '--weights', str(weights), '--arch', 'nano', '--img-size', '128']
    arguments += ['--window-size', '4', '--num-tokens', '16', '--keep', '1']
    assert tool.main(arguments) == 2
    assert 'no .jpg or .png' in capsys.readouterr().err
    Image.effect_noise((100, 100), 60).save(tmp_path / 'noise.png')
    assert tool.main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.count('0.000') >= 16  # all tokens kept, and as many gathering tokens as tokens: global attention
    assert 'by query' in shown
    arguments[-2:] = ['--keep', '--global-blocks', '0', '1', '2', '3', '--num-tokens', '0']
    assert tool.main(arguments) == 0
    shown = capsys.readouterr().out
    assert 'blocks [0, 1, 2, 3] global' in shown
    assert shown.count('0.000') == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('--batch 0', 'must be positive'),
        ('--plot a.png', 'go together'),
        ('--method x', 'invalid choice'),
        ('--size 12y', 'give HxW'),
    ],
)
def test_benchmark_refuses(load_script, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        load_script('benchmark_tokens').parse_args(arguments.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_benchmark_reports_and_draws(load_script, tmp_path, monkeypatch, capsys):
    tool = load_script('benchmark_tokens')
    seen = []

    def measure_sweep(group, *, advance, **settings):
        seen.append(settings)
        rows = []
        for row in group:
            advance()
            rows.append(
                {
                    'arch': row.case.arch,
                    'size': list(row.case.size),
                    'dtype': row.case.dtype,
                    'method': row.method,
                    'keep_ratio': row.keep_ratio,
                    'macs': 2e9,
                    'mac_ratio': 1.5,
                    'speedup': 1.25,
                    'speedups': [1.0, 1.5],
                    'token_overhead': 0.125,
                    'memory_ratio': 1.0,
                    'tensor_ratio': 0.5,
                }
            )
        return rows

    monkeypatch.setattr(tool, 'measure_sweep', measure_sweep)
    report, plot, scores = (tmp_path / name for name in ('new/report.json', 'plot.png', 'scores.json'))
    scores.write_text(json.dumps({'AP': {'migration': {'0': 0.5}}}))
    line = ['--arch', 'nano', '--size', '64', '--method', 'migration', '--keep', '0.5', '0.7', '--threads', '1']
    line += ['--json', str(report), '--plot', str(plot), '--accuracy', str(scores)]
    assert tool.main(line) == 0
    assert seen == [{'threads': 1, 'seconds': 20.0, 'min_rounds': 5}]
    written = json.loads(report.read_text())
    assert written['command'] == line
    assert written['machine']['cores'] >= 1
    assert [(row['method'], row['keep_ratio']) for row in written['rows']] == [
        ('global', 1.0),
        ('migration', 0.5),
        ('migration', 0.7),
    ]
    assert plot.read_bytes().startswith(b'\x89PNG')
    assert '12.5%' in capsys.readouterr().out
    scores.write_text('{}')
    assert tool.main(line) == 1
    assert 'nothing to draw' in capsys.readouterr().out
