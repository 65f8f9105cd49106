from __future__ import annotations

import os
import socket

import pytest

from mmitpn.engine import rendezvous
from mmitpn.engine.rendezvous import find_interface, first_host, read_slurm, use_gloo_interface

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


def test_what_is_given_holds():
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
def test_hosts_that_cannot_be_told_are_an_error(monkeypatch, hosts):
    monkeypatch.setattr(rendezvous.shutil, 'which', lambda _: None)
    with pytest.raises(ValueError, match='set MASTER_ADDR'):
        first_host({} if hosts is None else {'SLURM_NODELIST': hosts})


def own_address() -> str:
    """An address of this machine that is no loopback one."""
    names = [name for _, name in socket.if_nameindex()]
    found = [address for address in map(rendezvous._address, names) if address and not address.startswith('127.')]
    return found[0] if found else pytest.skip('this machine has no network')


def test_gloo_uses_the_interface_that_has_the_address():
    address = own_address()
    env = {'MASTER_ADDR': address}
    use_gloo_interface(env)
    assert rendezvous._address(env['GLOO_SOCKET_IFNAME']) == address


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', 'no-such-host.invalid'])
def test_gloo_is_left_alone_on_one_host(host):
    env = {'MASTER_ADDR': host}
    use_gloo_interface(env)
    assert 'GLOO_SOCKET_IFNAME' not in env
    assert find_interface(host) is None


def test_an_interface_that_is_given_holds():
    env = {'MASTER_ADDR': '127.0.0.1', 'GLOO_SOCKET_IFNAME': 'ib0'}
    use_gloo_interface(env)
    assert env['GLOO_SOCKET_IFNAME'] == 'ib0'
