"""The command lines around checkpoints: convert, publish, and what each tool reports of a broken file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import safetensors.torch
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from PIL import Image

from mmitpn import FastITPN, ITPNPyramid
from mmitpn.checkpoint import convert_to_authors, load_pretrained, read_checkpoint
from mmitpn.engine import find_latest_checkpoint, setup_environment
from mmitpn.engine.resume import is_complete

CONVERT = Path(__file__).parents[2] / 'tools' / 'convert'
ARCH = {'depths': (1, 1, 2), 'embed_dim': 64, 'num_heads': 1}
TOOL = Path(__file__).parents[2] / 'tools/misc/publish_model.py'
NANO = {'depths': (1, 1, 1), 'embed_dim': 16, 'num_heads': 1}
TOOLS = Path(__file__).parents[2] / 'tools'
QUICKSTART = TOOLS.parent / 'configs' / 'quickstart'
CONFIG = """
default_scope = 'mmengine'
model = dict(
    type='ImageClassifier', backbone=dict(type='mmitpn.FastITPN', arch='nano', img_size=32, out_indices=(2,)),
    neck=dict(type='mmitpn.ITPNPyramid', in_channels=(48, 96, 192)))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
test_dataloader = dict(dataset=dict(type='None', pipeline=[]))
test_evaluator = dict()
test_cfg = dict()
"""
SAYS = {
    'page.pth': 'is a web page, not the weights',
    'page_with_mark.pth': 'is a web page, not the weights',
    'pointer.pth': 'is a git-lfs pointer, not the weights',
    'empty.pth': 'is empty (0 bytes)',
    'cut.pth': 'it is cut off, damaged or of another kind (the end of the archive is missing)',
    'cut.safetensors': 'it is cut off, damaged or of another kind',
    'text.pth': "is not a checkpoint: it starts with b'epoch 1",
    'page.json': "is not a checkpoint: it starts with b'{",
    'image.png': 'is not a checkpoint: it starts with',
    'program.pth': 'is a TorchScript program, not weights by name',
    'source.zip': 'is an archive (of README, ...), not a checkpoint',
    'list.pth': 'holds a list, not weights by name',
    'folder': 'is a folder (holding notes.txt)',
    'shards': 'cannot be read as the index of a checkpoint in shards',
}


@pytest.fixture
def run(capfd, monkeypatch):
    """A function that runs a tool in this process, as the shell would (starting another takes seconds)."""

    def call(tool, *args):
        monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, args)])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(CONVERT / f'{tool}.py'), run_name='__main__')
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
    command = [sys.executable, str(CONVERT / f'{tool}.py'), authors[0].name, *out]
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


@pytest.fixture(scope='module')
def broken(tmp_path_factory) -> Path:
    """A folder of files, named as in ``SAYS``, with a config and an image beside them."""
    root = tmp_path_factory.mktemp('broken')
    texts = {
        'page.pth': '<!DOCTYPE html><title>Log in</title>',
        'page_with_mark.pth': '\ufeff\n<html><body>Quota exceeded</body></html>',
        'pointer.pth': 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
        'empty.pth': '',
        'text.pth': 'epoch 1: loss 0.3\n',
        'page.json': json.dumps({'error': 'not found'}),
        'config.py': CONFIG,
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    torch.save({'state_dict': {'a': torch.zeros(999)}}, root / 'cut.pth')
    safetensors.torch.save_file({'a': torch.zeros(999)}, root / 'cut.safetensors')
    for name in ('cut.pth', 'cut.safetensors'):
        (root / name).write_bytes((root / name).read_bytes()[:-500])
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), root / 'program.pth')
    torch.save([torch.zeros(1)], root / 'list.pth')
    Image.new('RGB', (64, 64)).save(root / 'image.png')
    with zipfile.ZipFile(root / 'source.zip', 'w') as archive:
        archive.writestr('project/README', 'text')
    for name, file in (('folder', 'notes.txt'), ('shards', '.metadata')):
        (root / name).mkdir()
        (root / name / file).write_bytes(b'\x80\x04nothing')
    return root


USES: dict[str, Callable[[str, Path], list[str]]] = {
    'train --resume': lambda file, out: ['config.py', '--resume', file, '--work-dir', str(out)],
    'train load_from': lambda file, out: ['config.py', '--work-dir', str(out), '--cfg-options', f'load_from={file}'],
    'test': lambda file, out: ['config.py', file, '--work-dir', str(out)],
    'convert/inspect_checkpoint': lambda file, _: [file],
    'convert/convert_checkpoint': lambda file, out: [file, str(out / 'out.pth')],
    'misc/publish_model': lambda file, out: [file, str(out / 'out.pth')],
    'misc/swap_backbone': lambda file, out: ['config.py', '--weights', file, '-o', str(out / 'out.py')],
    'analysis/visualize_reconstruction': lambda file, out: [
        *('image.png', '--config', str(QUICKSTART / 'pretrain_fast-itpn-nano_shapes-mfm.py'), '--checkpoint', file),
        *('--out', str(out / 'out.png')),
    ],
}

SLOW = ('analysis/visualize_reconstruction',)


@pytest.mark.parametrize('use', [pytest.param(use, marks=[pytest.mark.slow] * (use in SLOW)) for use in USES])
def test_each_tool_reports_each_file(broken, tmp_path, monkeypatch, capsys, use):
    monkeypatch.chdir(broken)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(logging, 'raiseExceptions', False)  # a logger of another test may hold its closed output
    name = use.split()[0]
    spec = importlib.util.spec_from_file_location(f'tool_{Path(name).name}', TOOLS / f'{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for file, says in list(SAYS.items())[:: 5 if use in SLOW else 1]:  # some build a model each time
        arguments = USES[use](file, tmp_path)
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *arguments])
        status = tool.main() if name.startswith('convert') else tool.main(arguments)
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith('error: ')]
        assert (status, len(lines)) == (2, 1), f'{file}: {said}'
        assert says in lines[0]
        assert 'Traceback' not in said
    assert list(tmp_path.glob('out*')) == []


@pytest.mark.parametrize('file', SAYS)
def test_mmengine_reads_by_the_same_reader(broken, file):
    """Also the ``init_cfg`` of a module that is not this project's."""
    setup_environment()
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text follows
        CheckpointLoader.load_checkpoint(str(broken / file), logger=None)
    assert SAYS[file] in str(raised.value)


def test_mmengine_loads_what_it_could_not(tmp_path):
    setup_environment()
    state = {'weight': torch.arange(3.0)}
    safetensors.torch.save_file(state, tmp_path / 'weights.safetensors')
    torch.save(state, tmp_path / 'weights.pth')
    found = CheckpointLoader.load_checkpoint(str(tmp_path / 'weights.safetensors'), logger=None)
    assert torch.equal(found['state_dict']['weight'], state['weight'])
    found = CheckpointLoader.load_checkpoint((tmp_path / 'weights.pth').as_uri(), logger=None)
    assert torch.equal(found['state_dict']['weight'], state['weight'])
    found = CheckpointLoader.load_checkpoint(str(tmp_path / 'weights.pth'), logger=None)
    assert torch.equal(found['weight'], state['weight'])  # as mmengine gives it
    with pytest.raises(FileNotFoundError, match='does not exist'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'gone.pth'), logger=None)


def test_an_address_is_explained_too(broken, monkeypatch):
    from mmengine.runner import checkpoint

    setup_environment()
    setup_environment()  # wraps mmengine's loader once
    calls = []

    def fails(*arguments: object) -> None:
        calls.append(arguments)
        raise RuntimeError('as of a web page')

    original = CheckpointLoader._schemes
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(original))
    CheckpointLoader.register_scheme(('http://', 'https://'), loader=fails, force=True)
    setup_environment()
    monkeypatch.setattr('mmitpn.checkpoint.reader._download', lambda _: broken / 'pointer.pth')
    monkeypatch.setattr(Path, 'unlink', lambda *_, **__: None)
    with pytest.raises(
        ValueError, match=r'https://x\.org/w\.pth is a git-lfs pointer.*the broken download was removed'
    ):
        checkpoint._load_checkpoint('https://x.org/w.pth', logger=None)
    assert len(calls) == 1


def test_automatic_resuming_skips_what_is_no_checkpoint(broken, tmp_path):
    torch.save({'state_dict': {}}, tmp_path / 'epoch_1.pth')
    for number, name in enumerate(('program.pth', 'source.zip', 'page.pth', 'cut.pth'), start=2):
        (tmp_path / f'epoch_{number}.pth').write_bytes((broken / name).read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    assert [is_complete(path) for path in sorted(tmp_path.glob('epoch_*'))] == [True, False, False, False, False]
    assert find_latest_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'


def test_the_shared_cases(capsys, tmp_path, monkeypatch, broken):
    folder = TOOLS.parents[1] / 'shared' / 'cases' / 'checkpoints'
    if not folder.is_dir():
        pytest.skip('the cases (shared/cases beside the project) are not here')
    setup_environment()
    for path in folder.iterdir():
        with pytest.raises(ValueError, match=r'is a web page|is a git-lfs pointer|is empty'):
            CheckpointLoader.load_checkpoint(str(path), logger=None)
