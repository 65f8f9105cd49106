"""Hooks: NaN images, NaN losses and signals stop a run; checkpoint files are complete, readable and found again."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner, save_checkpoint

from mmitpn.atomic import SUFFIX, remove_leftovers, write_atomic
from mmitpn.checkpoint.reader import register_safe_globals
from mmitpn.engine import (
    AtomicCheckpointHook,
    StopOnInvalidLossHook,
    StopOnSignalHook,
    find_latest_checkpoint,
    setup_environment,
    use_atomic_checkpoints,
)
from mmitpn.engine import hooks as hook_module
from mmitpn.models.backbones import FastITPN

SIZES = {'depths': (1, 1, 1), 'embed_dim': 16, 'num_heads': 1}


class Images(torch.utils.data.Dataset):
    """Eight images ``(3, 32, 32)``; ``broken`` gives the value of one pixel of the one of index 5."""

    metainfo = {}  # noqa: RUF012

    def __init__(self, broken: float | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        image = torch.full((3, 32, 32), float(index))
        if index == 5 and self.broken is not None:
            image[1, 2, 3] = self.broken
        return {'inputs': image, 'data_samples': SimpleNamespace(img_path=f'{index}.png')}


class Network(BaseModel):
    """A backbone that learns to give zeros; ``spoil`` multiplies the image of index 5 by NaN, as a preprocessor may."""

    def __init__(self, spoil: bool = False) -> None:
        super().__init__()
        self.backbone, self.spoil = FastITPN(SIZES), spoil

    def forward(self, inputs: list[torch.Tensor], data_samples: list | None = None, mode: str = 'tensor') -> dict:
        x = torch.stack([x * float('nan') if self.spoil and x[0, 0, 0] == 5 else x for x in inputs])
        maps = self.backbone(x)
        return {'loss_fine': [out.square().mean() for out in maps[:2]], 'loss_main': maps[2].square().mean()}


class Before(Hook):
    """Copies the weights before each iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.weights = copy.deepcopy(runner.model.state_dict())


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A function that gives a runner of four steps with two images each, and the hook that remembers weights."""
    monkeypatch.setitem(DATASETS._module_dict, 'NaNTestImages', Images)
    monkeypatch.setitem(MODELS._module_dict, 'NaNTestNetwork', Network)
    count = iter(range(10))

    def make(*, broken=None, spoil=False, hook=None, **optim) -> tuple[Runner, Before]:
        cfg = Config(
            {
                'default_scope': 'mmengine',
                'work_dir': str(tmp_path),
                'model': {'type': 'NaNTestNetwork', 'spoil': spoil},
                'train_dataloader': {
                    'batch_size': 2,
                    'num_workers': 0,
                    'sampler': {'type': 'DefaultSampler', 'shuffle': False},
                    'dataset': {'type': 'NaNTestImages', 'broken': broken},
                },
                'train_cfg': {'by_epoch': False, 'max_iters': 4},
                'optim_wrapper': {'optimizer': {'type': 'AdamW', 'lr': 1e-2}, **optim},
                'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1, 'by_epoch': False}},
                'custom_hooks': [{'type': 'mmitpn.StopOnInvalidLossHook', **(hook or {})}],
                'log_level': 'ERROR',
                'experiment_name': f'{tmp_path.name}_{next(count)}',
            }
        )
        runner, before = Runner.from_cfg(cfg), Before()
        runner.register_hook(before, priority='HIGHEST')
        return runner, before

    return make


def assert_weights_stayed(runner, before, tmp_path):
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before.weights[name]), name
        assert value.isfinite().all(), name
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_2.pth')


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_one_broken_image_is_named_and_reaches_no_weight(start, tmp_path, value):
    runner, before = start(broken=value)
    with pytest.raises(FloatingPointError, match=r'iteration 3: NaN or infinite values in the image\(s\) 5\.png: '):
        runner.train()
    assert_weights_stayed(runner, before, tmp_path)


@pytest.mark.parametrize('accumulative_counts', [1, 3])
def test_a_loss_is_looked_at_before_the_step(start, tmp_path, accumulative_counts):
    runner, before = start(spoil=True, accumulative_counts=accumulative_counts)
    with pytest.raises(FloatingPointError) as raised:
        runner.train()
    assert str(raised.value).startswith(
        'iteration 3: loss_fine is nan, loss_main is nan; the images were 4.png, 5.png. The last good checkpoint is '
    )
    assert_weights_stayed(runner, before, tmp_path)


def test_an_iteration_without_a_step_is_looked_at_too(start):
    runner, _ = start(spoil=True, accumulative_counts=4)
    steps = []
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: steps.append(runner.iter))
    with pytest.raises(FloatingPointError, match=r'iteration 3: loss_fine is nan'):
        runner.train()
    assert steps == []


def test_a_good_run_ends_and_each_loss_is_looked_at_once(start, monkeypatch):
    looks = []
    honest = hook_module._sum
    monkeypatch.setattr(hook_module, '_sum', lambda loss: looks.append(loss) or honest(loss))
    runner, _ = start()
    runner.train()
    assert runner.iter == 4
    assert len(looks) == 4 * 3  # iterations x (two fine maps, one main)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, StopOnInvalidLossHook))
    assert hook._handles == []
    assert not runner.model._forward_hooks
    runner.optim_wrapper.optimizer.step()  # the run is over: nobody looks any more


def test_with_an_interval_only_some_iterations_are_looked_at(start):
    runner, _ = start(spoil=True, hook={'interval': 2})
    with pytest.raises(FloatingPointError, match=r'iteration 4: loss_fine is nan'):
        runner.train()


def test_the_loss_of_another_process_stops_this_one(start, monkeypatch):
    runner, before = start()

    def all_reduce(value, op):
        assert op == 'max'
        value.fill_(runner.iter == 2)

    monkeypatch.setattr(hook_module, 'get_world_size', lambda: 2)
    monkeypatch.setattr(hook_module, 'all_reduce', all_reduce)
    with pytest.raises(FloatingPointError, match=r'iteration 3: a loss of another process is NaN or infinite; the'):
        runner.train()
    for name, value in runner.model.state_dict().items():
        assert torch.equal(value, before.weights[name]), name


@pytest.mark.parametrize(
    ('inputs', 'names'),
    [
        ([torch.ones(3, 2, 2), torch.full((3, 2, 2), torch.nan)], ['b.png']),
        (torch.tensor([[[[torch.inf]]], [[[1.0]]]]), ['a.png']),
        ([torch.ones(3, 2, 2).half() * 6e4, torch.ones(3, 2, 2)], []),  # the sum is infinite, no value is
        ([torch.ones(3, 2, 2, dtype=torch.uint8)] * 2, []),
        ([torch.ones(2, 3, 2, 2), torch.tensor([[[[1.0]]], [[[torch.nan]]]])], ['b.png']),  # two views of the batch
        ([torch.ones(3, 2, 2)] * 2 + [torch.full((3, 2, 2), torch.nan)], ['number 3 of the batch']),
        ({'a': 1}, []),
        ([], []),
    ],
)
def test_broken_images_of_a_batch(inputs, names):
    samples = [SimpleNamespace(img_path='a.png'), SimpleNamespace(img_path='b.png')]
    assert hook_module._broken_images({'inputs': inputs, 'data_samples': samples}) == names


@pytest.mark.parametrize('interval', [0, True, 1.5, '2'])
def test_intervals_that_are_none(interval):
    with pytest.raises(ValueError, match='give an integer number of iterations of at least 1'):
        StopOnInvalidLossHook(interval)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'signals': 'SIGTERM'}, "give a list of names such as 'SIGTERM'"),
        ({'signals': ['SIGNOTHING']}, r"signals is \['SIGNOTHING'\]"),
        ({'interval': 0}, 'interval is 0; give an integer number of steps of at least 1'),
        ({'interval': True}, 'give an integer number of steps'),
    ],
)
def test_wrong_settings_of_the_signal_hook(settings, message):
    with pytest.raises(ValueError, match=message):
        StopOnSignalHook(**settings)


def test_a_process_that_ended_is_not_running():
    child = subprocess.Popen([sys.executable, '-c', ''])
    limit = time.monotonic() + 20
    while hook_module._is_running(child.pid):  # a zombie until it is waited for
        assert time.monotonic() < limit
        time.sleep(0.05)
    child.wait()
    assert not hook_module._is_running(child.pid)
    assert hook_module._is_running(os.getpid())


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(f'.*{SUFFIX}'))


def test_write_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / 'deep' / 'file'
    write_atomic(path, b'old')
    write_atomic(path, b'new')
    assert path.read_bytes() == b'new'
    assert [p.name for p in path.parent.iterdir()] == ['file']


def test_write_follows_a_link(tmp_path):
    (tmp_path / 'target').write_bytes(b'old')
    (tmp_path / 'link').symlink_to(tmp_path / 'target')
    write_atomic(tmp_path / 'link', b'new')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'target').read_bytes() == b'new'


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    setup_environment()
    path = tmp_path / 'epoch_1.pth'
    save_checkpoint({'state_dict': {'a': torch.ones(3)}}, str(path))

    def full(_: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        save_checkpoint({'state_dict': {'a': torch.zeros(3)}}, str(path))
    assert torch.load(path)['state_dict']['a'].sum() == 3
    assert not leftovers(tmp_path)


KILLED_WHILE_WRITING = """
import os, signal, sys, torch
from mmengine.runner import save_checkpoint
from mmitpn.engine import setup_environment
setup_environment()
path = sys.argv[1]
save_checkpoint({'state_dict': {'a': torch.ones(3)}}, path)
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # half-way: written, not yet renamed
save_checkpoint({'state_dict': {'a': torch.zeros(3)}}, path)
"""


def test_a_kill_during_the_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    done = subprocess.run([sys.executable, '-c', KILLED_WHILE_WRITING, path], check=False)
    assert done.returncode == -9
    assert torch.load(path)['state_dict']['a'].sum() == 3
    assert len(leftovers(tmp_path)) == 1
    assert remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['epoch_1.pth']


def make_hook(tmp_path: Path, save, **options) -> tuple[AtomicCheckpointHook, SimpleNamespace]:
    hook = AtomicCheckpointHook(interval=1, **options)
    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        logger=logging.getLogger('test'),
        message_hub=MessageHub.get_instance(f'test{tmp_path}'),
        save_checkpoint=save,
        epoch=0,
        iter=0,
    )
    hook.before_train(runner)
    return hook, runner


def test_the_old_checkpoint_stays_until_the_new_one_is_there(tmp_path):
    seen = []

    def save(out_dir: str, filename: str, *_: object, **__: object) -> None:
        seen.append(sorted(p.name for p in tmp_path.glob('*.pth')))
        if filename == 'epoch_3.pth':
            raise OSError('killed')
        Path(out_dir, filename).write_bytes(b'x')

    hook, runner = make_hook(tmp_path, save, max_keep_ckpts=1)
    for runner.epoch in (0, 1):
        hook._save_checkpoint(runner)
    assert seen == [[], ['epoch_1.pth']]
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['epoch_2.pth']
    runner.epoch = 2
    with pytest.raises(OSError, match='killed'):
        hook._save_checkpoint(runner)
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['epoch_2.pth']
    assert Path((tmp_path / 'last_checkpoint').read_text()).name == 'epoch_2.pth'


def test_the_old_sharded_checkpoint_is_removed(tmp_path):
    def save(out_dir: str, filename: str, *_: object, **__: object) -> None:
        Path(out_dir, filename).mkdir()
        Path(out_dir, filename, '.metadata').write_bytes(b'x')

    hook, runner = make_hook(tmp_path, save, max_keep_ckpts=1)
    for runner.epoch in (0, 1):
        hook._save_checkpoint(runner)
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['epoch_2.pth']
    assert find_latest_checkpoint(tmp_path) == tmp_path / 'epoch_2.pth'


def test_the_old_best_stays_until_the_new_one_is_there(tmp_path):
    seen = []

    def save(out_dir: str, filename: str, *_: object, **__: object) -> None:
        seen.append(sorted(p.name for p in tmp_path.glob('best*.pth')))
        Path(out_dir, filename).write_bytes(b'x')

    hook, runner = make_hook(tmp_path, save, save_best='mAP')
    for runner.epoch, score in ((1, 0.1), (2, 0.2)):
        hook.after_val_epoch(runner, {'mAP': score})
    assert seen == [[], ['best_mAP_epoch_1.pth']]
    assert sorted(p.name for p in tmp_path.glob('best*.pth')) == ['best_mAP_epoch_2.pth']


def test_a_new_start_clears_what_a_kill_left(tmp_path):
    (tmp_path / f'.epoch_1.pth.77{SUFFIX}').write_bytes(b'half')
    make_hook(tmp_path, None)
    assert not leftovers(tmp_path)


def test_the_hook_makes_writing_atomic_without_our_tools(tmp_path):
    make_hook(tmp_path, None)
    assert type(get_file_backend(str(tmp_path))).__name__ == 'AtomicLocalBackend'


ATOMIC = 'mmitpn.AtomicCheckpointHook'


@pytest.mark.parametrize(
    'hooks', [{}, {'default_hooks': {}}, {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 3}}}]
)
def test_the_checkpoint_hook_is_replaced_and_keeps_its_options(hooks):
    cfg = Config(hooks)
    changes = use_atomic_checkpoints(cfg)
    assert changes == [f'default_hooks.checkpoint.type: CheckpointHook -> {ATOMIC}']
    assert use_atomic_checkpoints(cfg) == []
    assert cfg.default_hooks.checkpoint.type == ATOMIC
    assert cfg.default_hooks.checkpoint.interval == (3 if hooks.get('default_hooks') else 1)


def test_a_further_hook_and_a_class_are_replaced_too():
    cfg = Config({'default_hooks': {'checkpoint': None}})
    cfg.custom_hooks = [{'type': CheckpointHook, 'interval': 2}, {'type': 'EMAHook'}]
    use_atomic_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint is None
    assert [hook['type'] for hook in cfg.custom_hooks] == [ATOMIC, 'EMAHook']


def complete(path: Path) -> Path:
    torch.save({'a': 1}, path)
    return path


def test_resumes_from_the_file_named_last(tmp_path):
    complete(tmp_path / 'epoch_2.pth')
    named = complete(tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text(str(named))
    assert find_latest_checkpoint(tmp_path) == named


def test_resumes_in_a_folder_that_was_moved(tmp_path):
    named = complete(tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('/somewhere/else/epoch_1.pth')
    assert find_latest_checkpoint(tmp_path) == named


@pytest.mark.parametrize('pointer', ['', 'gone.pth', None])
def test_resumes_from_the_newest_complete_file_without_a_good_pointer(tmp_path, pointer):
    good = complete(tmp_path / 'iter_10.pth')
    os.utime(good, (1, 1))
    (tmp_path / 'iter_20.pth').write_bytes(good.read_bytes()[:-100])
    if pointer is not None:
        (tmp_path / 'last_checkpoint').write_text(pointer)
    assert find_latest_checkpoint(tmp_path) == good


def test_nothing_to_resume(tmp_path):
    assert find_latest_checkpoint(tmp_path) is None
    assert find_latest_checkpoint(tmp_path / 'missing') is None


def test_training_state_is_read_under_weights_only(tmp_path):
    register_safe_globals()
    state = {
        'log_scalars': HistoryBuffer([1.0, 2.0], [1, 1]),
        'best_score': np.float64(0.5),
        'palette': np.array([[1, 2, 3]], dtype=np.uint8),
        'count': np.int32(3),
        'names': np.array(['cat']),
        'mean': HistoryBuffer.mean,  # what old versions of mmengine stored
    }
    torch.save(state, tmp_path / 'state.pth')
    read = torch.load(tmp_path / 'state.pth', weights_only=True)
    assert read['log_scalars'].current() == 2
    assert read['best_score'] == 0.5
    assert read['palette'].tolist() == [[1, 2, 3]]
    assert read['mean'](read['log_scalars']) == 1.5


@pytest.mark.parametrize('module', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_arrays_of_either_numpy_are_read(tmp_path, module):
    register_safe_globals()
    torch.save({'a': np.arange(3), 'b': np.float32(2)}, tmp_path / 'own.pth')
    import zipfile

    with zipfile.ZipFile(tmp_path / 'own.pth') as old, zipfile.ZipFile(tmp_path / 'other.pth', 'w') as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith('data.pkl'):
                for spelling in (b'numpy._core.multiarray', b'numpy.core.multiarray'):
                    content = content.replace(b'c' + spelling + b'\n', b'c' + module.encode() + b'\n')
                assert module.encode() in content
            new.writestr(name, content)
    read = torch.load(tmp_path / 'other.pth', weights_only=True)
    assert read['a'].tolist() == [0, 1, 2]
    assert read['b'] == 2


class Callback:
    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@pytest.mark.parametrize(
    ('value', 'error', 'message'),
    [
        (Callback(), ValueError, "asks for '__init__' of .*HistoryBuffer.*; allowed: public methods"),
        (os.system, UnpicklingError, '(?i)weights.only'),
        (print, UnpicklingError, '(?i)weights.only'),
    ],
)
def test_other_objects_are_refused(tmp_path, value, error, message):
    register_safe_globals()
    torch.save({'a': value}, tmp_path / 'evil.pth')
    with pytest.raises(error, match=message):
        torch.load(tmp_path / 'evil.pth', weights_only=True)
