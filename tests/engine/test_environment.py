from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from mmitpn.engine import environment, setup_distributed, use_atomic_checkpoints

OURS = 'mmitpn.AtomicCheckpointHook'


@pytest.mark.parametrize(
    'hooks', [{}, {'default_hooks': {}}, {'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 3}}}]
)
def test_the_checkpoint_hook_becomes_ours_and_keeps_its_options(hooks):
    cfg = Config(hooks)
    use_atomic_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint.type == OURS
    assert cfg.default_hooks.checkpoint.interval == (3 if hooks.get('default_hooks') else 1)


def test_a_further_hook_and_a_class_are_replaced_too():
    cfg = Config({'default_hooks': {'checkpoint': None}})
    cfg.custom_hooks = [{'type': CheckpointHook, 'interval': 2}, {'type': 'EMAHook'}]
    use_atomic_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint is None
    assert [hook['type'] for hook in cfg.custom_hooks] == [OURS, 'EMAHook']


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(environment, 'get_device', lambda: 'cpu')


@pytest.mark.parametrize('setting', [{}, {'env_cfg': {'dist_cfg': {'backend': 'nccl', 'timeout': 60}}}])
def test_processes_without_a_gpu_use_gloo(without_gpu, monkeypatch, setting):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '0')
    started = {}
    monkeypatch.setattr(
        torch.distributed, 'init_process_group', lambda backend, **more: started.update(backend=backend, **more)
    )
    cfg = Config({**setting, 'find_unused_parameters': True})
    setup_distributed(cfg, 'pytorch')
    assert started == {'backend': 'gloo', 'timeout': timedelta(seconds=60) if setting else None}
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.launcher == 'pytorch'


@pytest.mark.parametrize(('launcher', 'says'), [('slurm', 'dist_train.sh'), ('pytorch', 'RANK')])
def test_launchers_that_cannot_work_here(without_gpu, monkeypatch, launcher, says):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(ValueError, match=says):
        setup_distributed(Config(), launcher)


def test_one_process_changes_nothing(without_gpu):
    cfg = Config()
    setup_distributed(cfg, 'none')
    assert cfg.launcher == 'none'
    assert 'model_wrapper_cfg' not in cfg
