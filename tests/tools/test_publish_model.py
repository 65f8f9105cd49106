from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import safetensors
import torch

from mmitpn.checkpoint import load_pretrained
from mmitpn.models.backbones import FastITPN

TOOL = Path(__file__).parents[2] / 'tools/misc/publish_model.py'
NANO = {'depths': (1, 1, 1), 'embed_dim': 16, 'num_heads': 1}


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
