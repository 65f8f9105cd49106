"""The command lines around checkpoints: convert and publish."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import safetensors.torch
import torch

from mmitpn import FastITPN, ITPNPyramid
from mmitpn.checkpoint import convert_to_authors, load_pretrained, read_checkpoint

TOOLS = Path(__file__).parents[2] / 'tools' / 'convert'
ARCH = {'depths': (1, 1, 2), 'embed_dim': 64, 'num_heads': 1}
TOOL = Path(__file__).parents[2] / 'tools/misc/publish_model.py'
NANO = {'depths': (1, 1, 1), 'embed_dim': 16, 'num_heads': 1}


@pytest.fixture
def run(capfd, monkeypatch):
    """A function that runs a tool in this process, as the shell would (starting another takes seconds)."""

    def call(tool, *args):
        monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=done.value.code, stdout=out, stderr=err)

    return call


@pytest.fixture
def modules():
    return FastITPN(ARCH), ITPNPyramid((16, 32, 64), out_channels=24)


@pytest.fixture
def authors(tmp_path, modules):
    """A pre-training file of the authors, fp16, and its weights."""
    state = convert_to_authors({**modules[0].state_dict(), **modules[1].state_dict()})
    state = {name: value.half() for name, value in state.items()}
    torch.save({'module': {**state, 'mask_token': torch.zeros(1, 1, 256).half()}}, tmp_path / 'authors.pt')
    return tmp_path / 'authors.pt', state


def test_convert_there_and_back_is_bit_equal(run, tmp_path, authors):
    path, state = authors
    done = run('convert_checkpoint', path, tmp_path / 'ours.safetensors')
    assert done.returncode == 0, done.stderr
    assert 'left out: mask_token' in done.stdout
    ours = safetensors.torch.load_file(tmp_path / 'ours.safetensors')
    assert 'backbone.blocks.0.attn.qkv.weight' in ours
    assert 'neck.align16.weight' in ours
    done = run('convert_checkpoint', tmp_path / 'ours.safetensors', tmp_path / 'back.pth', '--to', 'authors')
    assert done.returncode == 0, done.stderr
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['model']
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_convert_to_fp32_and_use_it(run, tmp_path, authors):
    target = tmp_path / 'new' / 'ours.pth'
    done = run('convert_checkpoint', authors[0], target, '--dtype', 'fp32')
    assert done.returncode == 0, done.stderr
    assert {value.dtype for value in read_checkpoint(target)['state_dict'].values()} == {torch.float32}
    for module in (FastITPN(ARCH), ITPNPyramid((16, 32, 64), out_channels=24)):
        assert load_pretrained(module, target).count('missing') == 0
    assert [p.name for p in target.parent.iterdir()] == ['ours.pth']
    again = run('convert_checkpoint', authors[0], target)
    assert again.returncode == 2
    assert 'exists: give another name, or --force' in again.stderr
    assert run('convert_checkpoint', authors[0], target, '--force').returncode == 0


def test_heads_of_our_own_detectors_are_kept(run, tmp_path, modules):
    state = {f'backbone.{name}': value for name, value in modules[0].state_dict().items()}
    state['bbox_head.weight'] = torch.ones(2)
    torch.save({'state_dict': state, 'optimizer': {'state': {0: torch.zeros(9)}}}, tmp_path / 'epoch.pth')
    assert run('convert_checkpoint', tmp_path / 'epoch.pth', tmp_path / 'small.pth').returncode == 0
    small = read_checkpoint(tmp_path / 'small.pth')
    assert list(small) == ['state_dict']
    assert small['state_dict'].keys() == state.keys()
    again = run('convert_checkpoint', tmp_path / 'epoch.pth', tmp_path / 'bare.pth', '--drop-heads')
    assert again.returncode == 0
    assert read_checkpoint(tmp_path / 'bare.pth')['state_dict'].keys() == state.keys() - {'bbox_head.weight'}


def test_inspect_says_what_a_file_is_and_how_to_use_it(run, authors):
    path, state = authors
    done = run('inspect_checkpoint', path)
    assert done.returncode == 0, done.stderr
    for text in (
        'fast_itpn_pretrain',
        'float16',
        'wrapped in module',
        '1/1/2 blocks, 64 channels',
        'with layer scale, 14x14 positions',
        '24 channels, 1 block(s) per merge, 64 hidden',
        'mask_token (1 weights)',
    ):
        assert text in done.stdout
    built = {}
    for name in ('backbone', 'neck'):
        line = re.search(rf'^ *{name}=(dict.*)$', done.stdout, re.MULTILINE)[1]
        config = eval(line)  # noqa: S307 - the line is what a user pastes into a config
        module = {'mmitpn.FastITPN': FastITPN, 'mmitpn.ITPNPyramid': ITPNPyramid}[config.pop('type')](**config)
        module.init_weights()
        built.update(module.state_dict())
    assert all(torch.equal(value, state[name].float()) for name, value in convert_to_authors(built).items())


def test_inspect_names_what_cannot_be_used(run, tmp_path):
    torch.save({'layer1.0.conv1.weight': torch.zeros(1)}, tmp_path / 'resnet.pth')
    done = run('inspect_checkpoint', tmp_path / 'resnet.pth')
    assert done.returncode == 0
    assert 'it looks like a ResNet' in done.stdout
    assert 'No config of this library can use it.' in done.stdout
    done = run('convert_checkpoint', tmp_path / 'resnet.pth', tmp_path / 'out.pth')
    assert done.returncode == 2
    assert 'not weights of the iTPN family' in done.stderr
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize('tool', ['inspect_checkpoint', 'convert_checkpoint'])
def test_errors_are_one_line_without_a_traceback(run, tmp_path, tool):
    (tmp_path / 'page.pth').write_text('<!doctype html>')
    out = [tmp_path / 'out.pth'] if tool == 'convert_checkpoint' else []
    for name, message in (('page.pth', 'web page'), ('missing.pth', 'does not exist')):
        done = run(tool, tmp_path / name, *out)
        assert done.returncode == 2
        assert done.stderr.startswith('error: ')
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize('tool', ['inspect_checkpoint', 'convert_checkpoint'])
def test_tools_run_from_anywhere(tmp_path, authors, tool):
    out = ['out.pth'] if tool == 'convert_checkpoint' else []
    command = [sys.executable, str(TOOLS / f'{tool}.py'), authors[0].name, *out]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '1/1/2 blocks, 64 channels' in done.stdout


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('publish_model', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path):
    """A training checkpoint as mmengine writes it, with an optimizer and a view among the weights."""
    state = {f'backbone.{name}': value for name, value in FastITPN(NANO, img_size=32).state_dict().items()}
    state['head.weight'] = torch.randn(100, 16)[:3]
    content = {
        'state_dict': state,
        'optimizer': {'state': {0: {'exp_avg': torch.randn(1000)}}},
        'message_hub': {'log_scalars': {}},
        'meta': {'epoch': 3, 'dataset_meta': {'classes': ('cat', 'dog')}, 'cfg': 'secret = 1'},
    }
    file = tmp_path / 'epoch_3.pth'
    torch.save(content, file)
    return file, state


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_weights_and_classes_and_nothing_else(suffix, tool, checkpoint, tmp_path, capsys):
    source, state = checkpoint
    assert tool.main([str(source), str(tmp_path / 'out' / f'model{suffix}')]) == 0
    (path,) = (tmp_path / 'out').iterdir()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert path.name == f'model-{digest}{suffix}'
    assert path.name in capsys.readouterr().out
    assert path.stat().st_size < 1.5 * sum(value.nbytes for value in state.values()) + 40000
    if suffix == '.pth':
        content = torch.load(path, weights_only=True)
        assert content.keys() == {'state_dict', 'meta'}
        meta, found = content['meta'], content['state_dict']
    else:
        with safetensors.safe_open(path, 'pt') as file:
            meta = json.loads(file.metadata()['meta'])
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    assert meta.keys() == {'dataset_meta', 'epoch', 'mmitpn_version'}
    assert meta['dataset_meta'] == {'classes': ['cat', 'dog']}
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert not load_pretrained(FastITPN(NANO, img_size=32), path).warnings


def test_half_precision_and_parts(tool, checkpoint, tmp_path):
    source, _ = checkpoint
    arguments = [str(source), str(tmp_path / 'out' / 'm.pth'), '--dtype', 'fp16', '--prefix', 'backbone.']
    assert tool.main(arguments) == 0
    (path,) = (tmp_path / 'out').iterdir()
    state = torch.load(path, weights_only=True)['state_dict']
    assert all(name.startswith('backbone.') for name in state)
    assert {value.dtype for value in state.values()} == {torch.float16}


class Hostile:
    """What an attacker would pickle."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('was_here').touch()",)


def test_mistakes_and_hostile_files(tool, checkpoint, tmp_path, capsys, monkeypatch):
    source, state = checkpoint
    monkeypatch.chdir(tmp_path)
    assert tool.main([str(source), 'model.bin']) == 2
    assert 'must end in .pth or .safetensors' in capsys.readouterr().err
    assert tool.main([str(source), 'model.pth', '--prefix', 'neck.']) == 2
    assert 'no weights below neck.' in capsys.readouterr().err
    torch.save({'state_dict': {**state, 'head.weight': torch.tensor([float('nan')])}}, 'broken.pth')
    assert tool.main(['broken.pth', 'model.pth']) == 2
    assert '1 weights are not finite (head.weight)' in capsys.readouterr().err
    torch.save({'state_dict': state, 'extra': Hostile()}, 'hostile.pth')
    assert tool.main(['hostile.pth', 'model.pth']) == 2
    assert 'exec' in capsys.readouterr().err
    assert not Path('was_here').exists()
    assert not list(tmp_path.glob('model*'))
