"""How the processes of a distributed run meet, on CPUs and under Slurm."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
import pytest
import torch
from mmengine.config import Config

from mmitpn.engine import runtime, setup_distributed
from mmitpn.engine.runtime import find_interface, first_host, read_slurm, use_gloo_interface


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(runtime, 'get_device', lambda: 'cpu')


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
    monkeypatch.setattr(runtime, 'get_device', lambda: device)
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


# --- Slurm and gloo -------------------------------------------------------------------------------------------------

TASK = {
    'SLURM_JOB_ID': '41',
    'SLURM_STEP_ID': '0',
    'SLURM_PROCID': '3',
    'SLURM_NTASKS': '4',
    'SLURM_LOCALID': '1',
    'SLURM_STEP_NODELIST': 'alpha,beta',
}


def test_a_slurm_task_becomes_what_torch_reads():
    found = read_slurm(TASK)
    assert {name: found[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR')} == {
        'RANK': '3',
        'WORLD_SIZE': '4',
        'LOCAL_RANK': '1',
        'MASTER_ADDR': 'alpha',
    }


def test_jobs_and_steps_have_ports_of_their_own_that_their_tasks_share():
    tasks = [TASK | {'SLURM_JOB_ID': str(job), 'SLURM_STEP_ID': str(step)} for job in range(40, 44) for step in (0, 1)]
    ports = [int(read_slurm(task)['MASTER_PORT']) for task in tasks]
    assert len(set(ports)) == len(ports)
    assert all(1024 < port < 32768 for port in ports)
    assert read_slurm(TASK | {'SLURM_JOB_ID': '4294967000'})['MASTER_PORT'] < '32768'
    assert read_slurm(TASK)['MASTER_PORT'] == read_slurm(TASK | {'SLURM_PROCID': '0'})['MASTER_PORT']


def test_what_the_environment_sets_is_kept():
    given = TASK | {'MASTER_ADDR': 'gamma', 'MASTER_PORT': '1234'}
    assert read_slurm(given)['MASTER_ADDR'] == 'gamma'
    assert read_slurm(given)['MASTER_PORT'] == '1234'
    assert read_slurm(given, port=5678)['MASTER_PORT'] == '5678'


def test_a_process_that_srun_did_not_start_is_refused():
    with pytest.raises(ValueError, match=r'SLURM_STEP_ID.*slurm_train\.sh'):
        read_slurm({name: value for name, value in TASK.items() if name != 'SLURM_STEP_ID'})


def test_one_host_needs_no_name():
    assert first_host({'SLURM_STEP_NUM_NODES': '1', 'SLURM_STEP_NODELIST': 'alpha'}) == '127.0.0.1'


def test_scontrol_expands_the_list_of_hosts(tmp_path, monkeypatch):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    assert first_host({'SLURM_NODELIST': 'node[07-08]'}) == 'node07'


@pytest.mark.parametrize('hosts', [None, 'node[07-08]'])
def test_an_unknown_first_host_is_an_error(monkeypatch, hosts):
    monkeypatch.setattr(runtime.shutil, 'which', lambda _: None)
    with pytest.raises(ValueError, match='set MASTER_ADDR'):
        first_host({} if hosts is None else {'SLURM_NODELIST': hosts})


def test_gloo_uses_the_interface_that_has_the_address():
    addresses = {
        one.address: name
        for name, entries in psutil.net_if_addrs().items()
        for one in entries
        if one.family == socket.AF_INET and not one.address.startswith('127.')
    }
    if not addresses:
        pytest.skip('this machine has no network')
    address, interface = next(iter(addresses.items()))
    env = {'MASTER_ADDR': address}
    use_gloo_interface(env)
    assert env['GLOO_SOCKET_IFNAME'] == interface


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', 'no-such-host.invalid'])
def test_gloo_is_left_alone_on_one_host(host):
    env = {'MASTER_ADDR': host}
    use_gloo_interface(env)
    assert 'GLOO_SOCKET_IFNAME' not in env
    assert find_interface(host) is None


def test_an_interface_that_is_set_is_kept():
    env = {'MASTER_ADDR': '127.0.0.1', 'GLOO_SOCKET_IFNAME': 'ib0'}
    use_gloo_interface(env)
    assert env['GLOO_SOCKET_IFNAME'] == 'ib0'
