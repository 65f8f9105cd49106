"""Complete pre-training runs through mmengine's runner: exact resumes, the exported file, a NaN loss."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mmitpn.checkpoint import load_pretrained
from mmitpn.engine import enable_exact_resume, setup_environment
from mmitpn.models.backbones import FastITPN
from mmitpn.models.necks import ITPNPyramid

pytest.importorskip('mmpretrain')
NANO = {'depths': (1, 1, 2), 'embed_dim': 64, 'num_heads': 2}


class Stop(Hook):
    """Interrupts a run, as a user does."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def after_train_epoch(self, runner) -> None:
        if runner.epoch + 1 == self.epochs:
            raise KeyboardInterrupt


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(0, 256, (72, 80, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    return folder


@pytest.fixture
def run(images, tmp_path):
    """Train; returns the runner."""
    setup_environment()  # as the tools do: training checkpoints are read weights-only

    def train(name, *, epochs, stop_after=None, resume=False, workers=0, **model) -> Runner:
        pipeline = [
            {'type': 'LoadImageFromFile'},
            {'type': 'RandomResizedCrop', 'scale': 64},
            {'type': 'RandomFlip', 'prob': 0.5},
            {'type': 'BEiTMaskGenerator', 'input_size': (4, 4), 'num_masking_patches': 6, 'min_num_patches': 2},
            {'type': 'PackInputs', 'algorithm_keys': ['mask'], 'meta_keys': ['img_path']},
        ]
        cfg = Config(
            {
                'default_scope': 'mmpretrain',
                'work_dir': str(tmp_path / name),
                'model': {
                    'type': 'mmitpn.ITPNPretrain',
                    'form': 'mfm',
                    'masking': 'pipeline',
                    'data_preprocessor': {'mean': [127.0] * 3, 'std': [60.0] * 3, 'bgr_to_rgb': True},
                    'backbone': {'type': 'mmitpn.FastITPN', 'arch': NANO, 'img_size': 64, 'drop_path_rate': 0.3},
                    'neck': {
                        'type': 'mmitpn.ITPNPyramid',
                        'in_channels': (16, 32, 64),
                        'out_channels': 32,
                        'num_outs': 3,
                    },
                    **model,
                },
                'train_dataloader': {
                    'batch_size': 2,
                    'num_workers': workers,
                    'persistent_workers': bool(workers),
                    'sampler': {'type': 'DefaultSampler', 'shuffle': True},
                    'collate_fn': {'type': 'default_collate'},
                    'dataset': {
                        'type': 'CustomDataset',
                        'data_root': str(images),
                        'with_label': False,
                        'pipeline': pipeline,
                    },
                },
                'train_cfg': {'by_epoch': True, 'max_epochs': epochs},
                'optim_wrapper': {
                    'type': 'OptimWrapper',
                    'optimizer': {'type': 'AdamW', 'lr': 1e-3},
                    'accumulative_counts': 2,
                },
                'default_hooks': {
                    'checkpoint': {'type': 'mmitpn.AtomicCheckpointHook', 'interval': 1},
                    'sampler_seed': {'type': 'DistSamplerSeedHook'},
                },
                'custom_hooks': [
                    {'type': 'mmitpn.ExportPretrainedHook'},
                    {'type': 'EMAHook', 'momentum': 0.1},
                ],
                'randomness': {'seed': 7},
                'resume': resume,
                'log_level': 'ERROR',
                'experiment_name': f'{tmp_path.name}_{name}_{epochs}_{resume}',
            }
        )
        enable_exact_resume(cfg)
        runner = Runner.from_cfg(cfg)
        if stop_after is not None:
            runner.register_hook(Stop(stop_after), priority='LOWEST')
        with contextlib.suppress(KeyboardInterrupt):
            runner.train()
        # Ends the workers here: the garbage collector, which meets their queues first, waits 10 seconds for each.
        runner.train_loop.dataloader._iterator = None
        return runner

    return train


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run, workers):
    whole = run('whole', epochs=4, workers=workers).model.state_dict()
    run('parts', epochs=4, stop_after=2, workers=workers)
    torch.rand(17)  # the earlier state of the generators has no effect
    resumed = run('parts', epochs=4, resume=True, workers=workers).model.state_dict()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_run_leaves_one_file_for_backbone_and_pyramid(run, tmp_path):
    runner = run('export', epochs=2)
    ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook').ema_model.module
    file = tmp_path / 'export' / 'pretrained.pth'
    backbone, neck = FastITPN(NANO, img_size=64), ITPNPyramid((16, 32, 64), out_channels=32, num_outs=4)
    for part, source in ((backbone, ema.backbone), (neck, ema.neck)):
        report = load_pretrained(part, file)
        assert not report.warnings
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in part.state_dict().items())
    names = torch.load(file, weights_only=True)['state_dict']
    assert {name.partition('.')[0] for name in names} == {'backbone', 'neck'}


def test_a_teacher_with_given_channels_is_loaded_when_the_run_begins(run, tmp_path):
    torch.save(FastITPN(NANO, img_size=64).state_dict(), tmp_path / 'teacher.pth')
    network = {'type': 'mmitpn.FastITPN', 'arch': NANO, 'img_size': 64}
    teacher = {
        'type': 'mmitpn.FeatureTeacher',
        'model': network,
        'weights': str(tmp_path / 'teacher.pth'),
        'channels': 64,
    }
    runner = run('teacher', epochs=1, form='fast', teacher=teacher)
    assert runner.model.teacher.network is not None
    assert not any('teacher' in name for name in runner.model.state_dict())


def test_a_nan_loss_stops_the_run_and_keeps_the_checkpoint(run, tmp_path, monkeypatch):
    from mmitpn.models.selfsup import ITPNPretrain

    run('broken', epochs=1)
    honest, calls = ITPNPretrain.loss, []

    def loss(self, *args):
        calls.append(1)
        found = honest(self, *args)
        return {**found, 'loss_pixels': found['loss_pixels'] * float('nan')} if len(calls) == 2 else found

    monkeypatch.setattr(ITPNPretrain, 'loss', loss)
    with pytest.raises(FloatingPointError, match=r'iteration 5: loss.* nan; the images were .*\d\.png, .*\d\.png'):
        run('broken', epochs=3, resume=True)
    assert (tmp_path / 'broken' / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    state = torch.load(tmp_path / 'broken' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in state.values())
