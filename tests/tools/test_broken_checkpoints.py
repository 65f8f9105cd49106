"""What is no checkpoint: every tool reports it in one sentence, with exit status 2."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from PIL import Image

from mmitpn.engine import find_latest_checkpoint, setup_environment
from mmitpn.engine.resume import is_complete

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
