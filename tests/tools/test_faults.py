"""Training runs that are killed, starved and fed with broken files; each resumes and ends as an uninterrupted one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / 'fault_toy'
STEPS = 18
pytestmark = pytest.mark.slow


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
        pytest.param('all:7', 0, 6, marks=pytest.mark.thorough),
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
