"""How the processes of a distributed run meet, and what command lines do to a config."""

from __future__ import annotations

import argparse
import os
import socket
from datetime import timedelta

import psutil
import pytest
import torch
from mmengine.config import Config
from mmengine.config import DictAction as MMEngineAction
from mmengine.registry import MODELS, DefaultScope

from mmitpn.engine import cli, resolve_config, runtime, setup_distributed, setup_environment
from mmitpn.engine.cli import DictAction, load_config, merge_options, parse_options
from mmitpn.engine.runtime import find_interface, first_host, read_slurm, use_gloo_interface
from mmitpn.utils import config_folder

MMDET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'
MMSEG = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512'


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


def parse(*options: str, action=DictAction) -> dict:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=action)
    return parser.parse_args(['--cfg-options', *options]).cfg_options


@pytest.mark.parametrize(
    ('value', 'wanted'),
    [
        ("('traffic light','cat')", ('traffic light', 'cat')),
        ("('traffic light', 'cat')", ('traffic light', 'cat')),
        ('["stop sign", "cat"]', ['stop sign', 'cat']),
        ('(traffic light,cat)', ('traffic light', 'cat')),
        ("('traffic light')", ('traffic light',)),
        ('traffic light,cat', ['traffic light', 'cat']),
        ("('a, b','c (big)')", ('a, b', 'c (big)')),
        ('("dog\'s nose",)', ("dog's nose",)),
        ("('0','1')", ('0', '1')),
        ('/data/my set/', '/data/my set/'),
        ('[[0,0,0],[1, 2, 3]]', [[0, 0, 0], [1, 2, 3]]),
    ],
)
def test_spaces_inside_values_are_kept(value, wanted):
    assert parse(f'x={value}') == {'x': wanted}
    assert type(parse(f'x={value}')['x']) is type(wanted)


@pytest.mark.parametrize(
    'value',
    [
        '3',
        '1e-4',
        'True',
        'none',
        'None',
        '1,2,3',
        '[1,2]',
        '(1, 2)',
        '[a,(b,c)]',
        "'cat'",
        '(cat)',
        'a=b',
        '',
        '()',
        '[(1, 2, 3), [a, b], c]',
    ],
)
def test_other_values_are_those_of_mmengine(value):
    assert repr(parse(f'x={value}')) == repr(parse(f'x={value}', action=MMEngineAction))


def test_a_config_is_loaded_with_overrides(tmp_path):
    (tmp_path / 'a.py').write_text('a = dict(b=1, c=2)\n')
    cfg = load_config(tmp_path / 'a.py', parse_options(['a.b=3', 'd=x y']))
    assert (cfg.a.b, cfg.a.c, cfg.d) == (3, 2, 'x y')
    assert load_config(tmp_path / 'a.py', parse_options([])).a.b == 1


def test_an_override_without_a_value_is_an_error_of_the_command_line(capsys):
    with pytest.raises(SystemExit):
        parse_options(['a.b=1', 'c.d'])
    assert "argument --cfg-options: 'c.d' must be KEY=VALUE, such as a.b.c=1" in capsys.readouterr().err


@pytest.fixture
def cfg() -> Config:
    loader = {'batch_size': 1, 'dataset': {'data_root': 'coco/', 'metainfo': {'classes': ('a',), 'palette': [1]}}}
    metric = [{'type': 'CocoMetric', 'ann_file': 'coco/val.json'}, {'type': 'Other'}]
    return Config(
        {
            'model': {'num_classes': 1},
            'val_dataloader': loader,
            'test_dataloader': loader,
            'val_evaluator': metric,
            'test_evaluator': metric,
        }
    )


@pytest.fixture
def logged(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(cli, 'print_log', lambda text, *_, **__: lines.append(text))
    return lines


def test_overrides_reach_test_data_that_are_a_copy(cfg, logged):
    merge_options(
        cfg,
        {
            'model.num_classes': 2,
            'val_dataloader.dataset.data_root': 'my/',
            'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b', 'c')},
            'val_evaluator.0.ann_file': 'my/val.json',
        },
    )
    assert cfg.model.num_classes == 2
    for split in ('val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.to_dict() == {'data_root': 'my/', 'metainfo': {'classes': ('b', 'c')}}
        assert cfg[f'{split}_evaluator'][0].ann_file == 'my/val.json'
        assert cfg[f'{split}_evaluator'][1].type == 'Other'
    (line,) = logged
    for key in ('test_dataloader.dataset.data_root', 'test_dataloader.dataset.metainfo', 'test_evaluator.0.ann_file'):
        assert key in line
    assert 'num_classes' not in line


def test_overrides_of_the_test_data_are_kept(cfg, logged):
    merge_options(
        cfg,
        {
            'test_dataloader.dataset.data_root': 'other/',
            'test_dataloader.dataset.metainfo.classes': ('d',),
            'val_dataloader.dataset.data_root': 'my/',
            'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b',)},
        },
    )
    assert cfg.val_dataloader.dataset.data_root == 'my/'
    assert cfg.test_dataloader.dataset.data_root == 'other/'
    assert cfg.test_dataloader.dataset.metainfo.to_dict() == {'classes': ('d',)}
    assert logged
    assert 'test_dataloader.dataset.data_root' not in logged[0]


def test_other_test_data_are_not_changed(cfg, logged):
    cfg.test_dataloader.dataset.data_root = 'test/'
    merge_options(cfg, {'val_dataloader.dataset.data_root': 'my/', 'val_dataloader.batch_size': 4})
    assert cfg.test_dataloader.dataset.data_root == 'test/'
    assert cfg.test_dataloader.batch_size == 1
    cfg.pop('test_evaluator')
    merge_options(cfg, {'val_evaluator.0.ann_file': 'my/val.json'})
    assert 'test_evaluator' not in cfg
    merge_options(cfg, None)
    assert not logged


def test_the_options_are_not_changed(cfg):
    options = {'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b',)}}
    merge_options(cfg, options)
    assert options == {'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b',)}}


@pytest.mark.parametrize('name', [MMDET, f'{MMDET}.py', MMSEG])
def test_a_host_config_is_found_by_name(name):
    assert Config.fromfile(resolve_config(name)).model.type in ('RetinaNet', 'EncoderDecoder')


@pytest.mark.parametrize(
    'name',
    [
        'dino-4scale_fast-itpn-b_8xb2-12e_coco',
        'dino-4scale_fast-itpn-b_8xb2-12e_coco.py',
        'dino/dino-4scale_fast-itpn-b_8xb2-12e_coco',
        'configs/dino/dino-4scale_fast-itpn-b_8xb2-12e_coco.py',
        'mmitpn::dino/dino-4scale_fast-itpn-b_8xb2-12e_coco.py',
    ],
)
def test_a_config_of_ours_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_config(name) == config_folder() / 'dino/dino-4scale_fast-itpn-b_8xb2-12e_coco.py'


OWN = 'mmitpn::quickstart/dino_fast-itpn-nano_shapes.py'


@pytest.mark.parametrize('base', [f'{MMDET}.py', f'{MMSEG}.py', OWN])
def test_a_host_config_is_inherited_from(tmp_path, base):
    setup_environment()
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{base}'\nmodel = dict(backbone=dict(frozen_stages=0))\n")
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.frozen_stages == 0
    assert 'type' in cfg.model


def test_a_config_that_inherits_from_ours_is_built(tmp_path):
    pytest.importorskip('mmdet')
    setup_environment()
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{OWN}'\nmodel = dict(num_queries=70)\n")
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        assert MODELS.build(cfg.model).num_queries == 70


def test_a_path_stays_what_it_is(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('a = 1\n')
    assert resolve_config(str(path)) == path


@pytest.mark.parametrize(
    ('name', 'kind', 'says'),
    [
        ('nowhere.py', FileNotFoundError, 'no config file'),
        ('dino-4scale_fast-itpn-x_8xb2-12e_coco', FileNotFoundError, 'these are near: dino/dino-4scale_fast-itpn-'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x', FileNotFoundError, 'near: retinanet/retinanet_r50_fpn_1x_coco.py'),
        ('mmnothing::a/b.py', ValueError, 'not installed'),
    ],
)
def test_a_config_that_is_not_there(name, kind, says):
    with pytest.raises(kind, match=says):
        resolve_config(name)
