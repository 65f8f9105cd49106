"""NaN images and losses stop a training run before they reach the weights; signals stop it at the end of a step."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner

from mmitpn.engine import StopOnInvalidLossHook, StopOnSignalHook
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
    with pytest.raises(FloatingPointError, match=r'iteration 3: a loss of another process is NaN or infinite; its'):
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
