"""Training runs that are killed, starved or fed broken files resume; broken checkpoints give one sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from PIL import Image

from mmitpn.engine import find_latest_checkpoint, setup_environment
from mmitpn.engine.resume import is_complete

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / 'fault_toy'
STEPS = 18
pytestmark = pytest.mark.slow
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
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('faults')
    (folder / 'images').mkdir()
    generator = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f'images/{i}.png')
    return folder


@pytest.fixture(scope='module')
def train(folder) -> Iterator[Callable[..., SimpleNamespace]]:
    """Train in a work dir; the processes start from one that has the libraries loaded."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(TOY))
    from fault_start import start_training

    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['mmitpn.config_check', 'mmitpn.engine', 'mmitpn.engine.cli'])

    def run(work_dir: Path | str, *options: str, fault: str = '', config: Path = TOY / 'toy.py') -> SimpleNamespace:
        work_dir = folder / work_dir
        log = folder / f'{work_dir.name}.log'
        log.unlink(missing_ok=True)
        variables = {'OMP_NUM_THREADS': '1', 'TOY_FAULT': f'{fault}:{folder / work_dir.name}.mark' if fault else ':-1:'}
        arguments = [str(config), '--work-dir', str(work_dir), *options]
        process = context.Process(target=start_training, args=(ROOT, arguments, folder, variables, log))
        process.start()
        process.join(90)
        return SimpleNamespace(status=process.exitcode, said=log.read_text(), work_dir=work_dir)

    yield run
    patch.undo()


@pytest.fixture(scope='module')
def uninterrupted(train) -> Path:
    done = train('uninterrupted', '--cfg-options', 'randomness.seed=5')
    assert done.status == 0, done.said[-2000:]
    return done.work_dir


def steps(work_dir: Path, rank: int = 0) -> list[str]:
    return (work_dir / f'steps.{rank}').read_text().splitlines()


def assert_the_same_end(work_dir: Path, other: Path) -> None:
    ends = [torch.load(one / 'epoch_3.pth', weights_only=False) for one in (work_dir, other)]
    for part in ('state_dict', 'ema_state_dict'):
        ours, theirs = (end[part] for end in ends)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part
    ours, theirs = (end['optimizer']['state'] for end in ends)
    assert all(torch.equal(ours[i][name], theirs[i][name]) for i in theirs for name in theirs[i])


@pytest.mark.parametrize(
    ('fault', 'status', 'says', 'resumes_from'),
    [
        ('kill:8', -9, '', 6),
        ('kill:3', -9, '', 0),
        ('stop:8', 143, 'stopped by a signal: saved', 9),
        ('stop:11', 143, 'after iteration 12; resume with --resume', 12),
        ('worker:8', 1, '', 6),
        ('write:11', -9, '', 6),
        ('nan:8', 3, 'error: iteration 9: loss_toy is nan; the images were', 6),
    ],
)
def test_a_run_that_was_stopped_resumes_as_if_it_was_not(train, uninterrupted, fault, status, says, resumes_from):
    seed = () if resumes_from else ('--cfg-options', 'randomness.seed=5')
    name = fault.replace(':', '_')
    stopped = train(name, '--cfg-options', 'randomness.seed=5', fault=fault)
    assert (stopped.status, says in stopped.said) == (status, True), stopped.said[-2000:]
    before = len(steps(stopped.work_dir))
    done = train(name, '--resume', *seed)  # the seed is the checkpoint's
    assert done.status == 0, done.said[-2000:]
    assert steps(done.work_dir)[before:] == steps(uninterrupted)[resumes_from:]  # steps, batches and their images
    assert_the_same_end(done.work_dir, uninterrupted)


@pytest.fixture(scope='module')
def two_epochs(train, uninterrupted) -> Path:
    stopped = train('two_epochs', '--cfg-options', 'randomness.seed=5', fault='kill:14')
    assert {path.name for path in stopped.work_dir.glob('*.pth')} == {'epoch_1.pth', 'epoch_2.pth'}
    return stopped.work_dir


@pytest.mark.parametrize('damage', ['cut off', 'empty', 'other bytes in the middle'])
def test_a_broken_checkpoint_is_named_and_the_previous_one_is_taken(train, two_epochs, uninterrupted, tmp_path, damage):
    work_dir = tmp_path / damage.replace(' ', '_')
    shutil.copytree(two_epochs, work_dir)
    newest = work_dir / 'epoch_2.pth'
    content = bytearray(newest.read_bytes())
    middle = len(content) // 2
    if damage == 'cut off':
        content = content[:middle]
    elif damage == 'empty':
        content = b''
    else:
        content[middle : middle + 64] = bytes(64)
    newest.write_bytes(content)
    (work_dir / 'last_checkpoint').write_text(str(newest))
    done = train(work_dir, '--resume')
    assert done.status == 0, done.said[-2000:]
    message = f'incomplete or damaged: {newest}; resuming from {work_dir / "epoch_1.pth"} instead'
    assert message in ' '.join(done.said.split())
    assert_the_same_end(done.work_dir, uninterrupted)


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(train, uninterrupted, tmp_path):
    work_dir = tmp_path / 'small'
    work_dir.mkdir()
    size = (uninterrupted / 'epoch_3.pth').stat().st_size
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={int(1.6 * size)}', 'tmpfs', str(work_dir)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip('a small file system cannot be mounted here')
    try:
        stopped = train(work_dir, '--cfg-options', 'randomness.seed=5')
        assert (stopped.status, 'the disk is full' in stopped.said) == (3, True), stopped.said[-2000:]
        assert sorted(path.name for path in work_dir.glob('*.pth')) == ['epoch_1.pth']
        subprocess.run(['mount', '-o', f'remount,size={20 * size}', str(work_dir)], check=True)  # somebody made room
        done = train(work_dir, '--resume')
        assert done.status == 0, done.said[-2000:]
        assert_the_same_end(work_dir, uninterrupted)
    finally:
        subprocess.run(['umount', str(work_dir)], check=True)


def test_a_broken_image_is_named_and_skipped_only_within_the_limit(train, folder):
    images = folder / 'some_broken'
    shutil.copytree(folder / 'images', images)
    (images / '3.png').write_bytes((images / '3.png').read_bytes()[:40])
    options = ('--cfg-options', 'train_dataloader.dataset.data_root=some_broken')
    stopped = train('broken_stops', *options)
    assert stopped.status != 0
    assert 'some_broken/3.png) cannot be loaded' in stopped.said
    done = train('broken_skipped', *options, 'max_broken_samples=1')
    assert done.status == 0, done.said[-2000:]
    assert done.said.count('cannot be loaded') == 1
    assert not any(step.split()[2:].count('3') for step in steps(done.work_dir))


def test_an_iteration_based_run_that_was_stopped_resumes_as_if_it_was_not(train, folder):
    config = folder / 'iterations.py'
    config.write_text(
        f'_base_ = {str(TOY / "toy.py")!r}\ntrain_cfg = dict(_delete_=True, by_epoch=False, max_iters=12)\n'
        "train_dataloader = dict(sampler=dict(type='InfiniteSampler'))\nrandomness = dict(seed=5)\n"
        'default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5))\n'
    )
    complete = train('iters', config=config)
    assert complete.status == 0, complete.said[-2000:]
    stopped = train('iters_stopped', config=config, fault='stop:7')
    assert stopped.status == 143, stopped.said[-2000:]
    assert train('iters_stopped', '--resume', config=config).status == 0
    assert steps(stopped.work_dir) == steps(complete.work_dir)
    ends = [torch.load(one.work_dir / 'iter_12.pth', weights_only=False)['state_dict'] for one in (complete, stopped)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.fixture(scope='module')
def launch(folder) -> Callable[..., SimpleNamespace]:
    """Train with two processes of torchrun; all of them end, whatever happens."""
    config = folder / 'two.py'  # as many steps as one process has
    config.write_text(f'_base_ = {str(TOY / "toy.py")!r}\ntrain_dataloader = dict(batch_size=1)\n')

    def run(name: str, *options: str, fault: str = '', rank: int = 0) -> SimpleNamespace:
        work_dir = folder / name
        variables = {'TOY_FAULT': f'{fault}:{folder / name}.mark' if fault else ':-1:', 'TOY_RANK': str(rank)}
        variables |= {'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, 'CUDA_VISIBLE_DEVICES': ''}
        path = os.pathsep.join([str(TOY), str(ROOT), os.environ.get('PYTHONPATH', '')])
        command = ['bash', ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', work_dir, *options]
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, **variables, 'PYTHONPATH': path},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        limit = time.monotonic() + 40
        while str(work_dir) in running() and time.monotonic() < limit:
            time.sleep(0.5)
        assert str(work_dir) not in running()
        return SimpleNamespace(status=done.returncode, said=done.stdout + done.stderr, work_dir=work_dir)

    return run


def running() -> str:
    """The command lines of all processes."""
    found = []
    for file in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):
            found.append(file.read_text())
    return '\n'.join(found)


@pytest.fixture(scope='module')
def two_uninterrupted(launch) -> Path:
    done = launch('two_uninterrupted', '--cfg-options', 'randomness.seed=5')
    assert done.status == 0, done.said[-2000:]
    return done.work_dir


@pytest.mark.parametrize(
    ('fault', 'rank', 'resumes_from'),
    [
        ('kill:8', 1, 6),  # one process
        ('all:7', 0, 6),
        ('launcher:7', 0, 10),  # its processes save, at the step at which they ask each other, and end
    ],
)
def test_two_processes_resume_after_a_kill(launch, two_uninterrupted, fault, rank, resumes_from):
    name = f'two_{fault.replace(":", "_")}'
    stopped = launch(name, '--cfg-options', 'randomness.seed=5', fault=fault, rank=rank)
    assert stopped.status != 0
    before = len(steps(stopped.work_dir))
    done = launch(name, '--resume')
    assert done.status == 0, done.said[-2000:]
    assert steps(done.work_dir)[before:] == steps(two_uninterrupted)[resumes_from:]
    ours, theirs = (torch.load(one / 'epoch_3.pth', weights_only=False) for one in (done.work_dir, two_uninterrupted))
    for label, value in theirs['state_dict'].items():
        torch.testing.assert_close(ours['state_dict'][label], value)


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
