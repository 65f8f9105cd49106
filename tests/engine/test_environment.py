from __future__ import annotations

import os
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
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT'):
        monkeypatch.setenv(name, '0')
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
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


SLURM = {
    'SLURM_JOB_ID': '41',
    'SLURM_STEP_ID': '0',
    'SLURM_PROCID': '1',
    'SLURM_NTASKS': '2',
    'SLURM_LOCALID': '1',
    'SLURM_STEP_NUM_NODES': '1',
}


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_slurm_sets_what_torch_reads_on_cpus_and_gpus(monkeypatch, device):
    monkeypatch.setattr(environment, 'get_device', lambda: device)
    monkeypatch.setattr(os, 'environ', {**os.environ, **SLURM})
    for name in ('MASTER_ADDR', 'MASTER_PORT'):
        os.environ.pop(name, None)
    started = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, **_: started.append(backend))
    cfg = Config({'env_cfg': {'dist_cfg': {'backend': 'nccl', 'port': 1234}}})
    setup_distributed(cfg, 'slurm')
    assert started == (['gloo'] if device == 'cpu' else [])  # mmengine starts nccl
    assert cfg.env_cfg.dist_cfg.backend == ('gloo' if device == 'cpu' else 'nccl')
    assert cfg.launcher == 'slurm'
    names = 'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'
    assert [os.environ[name] for name in names] == ['1', '2', '1', '127.0.0.1', '1234']


@pytest.mark.parametrize(
    ('launcher', 'says'), [('slurm', 'slurm_train.sh'), ('pytorch', 'RANK'), ('mpi', 'dist_train.sh')]
)
def test_launchers_that_cannot_work_here(without_gpu, monkeypatch, launcher, says):
    for name in ('RANK', 'SLURM_STEP_ID'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=says):
        setup_distributed(Config(), launcher)


def test_one_process_changes_nothing(without_gpu):
    cfg = Config()
    setup_distributed(cfg, 'none')
    assert cfg.launcher == 'none'
    assert 'model_wrapper_cfg' not in cfg
