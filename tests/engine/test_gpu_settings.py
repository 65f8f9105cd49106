"""Settings for GPUs, on a machine without one: what a config gets, and what it keeps."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from mmitpn.engine import amp, gpu_settings
from mmitpn.engine.amp import apply_amp
from mmitpn.engine.cli import load_config
from mmitpn.engine.gpu_settings import apply_gpu_settings, read_gpu_settings


@pytest.fixture
def on_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)


def small() -> Config:
    return Config(
        {
            'model': {'type': 'DINO', 'data_preprocessor': {'type': 'DetDataPreprocessor'}},
            'train_dataloader': {'batch_size': 2},
            'val_dataloader': {'batch_size': 1, 'pin_memory': False},
            'test_dataloader': {'batch_size': 1},
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1e-4}},
        }
    )


def test_training_gets_what_is_unset(on_gpu):
    cfg = small()
    changes = apply_gpu_settings(cfg, training=True)
    assert [line.partition(':')[0] for line in changes] == [
        'train_dataloader.pin_memory=True',
        'data_preprocessor.non_blocking=True',
        'optim_wrapper.optimizer.fused=True',
    ]
    assert cfg.train_dataloader.pin_memory
    assert cfg.model.data_preprocessor.non_blocking
    assert cfg.optim_wrapper.optimizer == {'type': 'AdamW', 'lr': 1e-4, 'fused': True}
    assert not cfg.val_dataloader.pin_memory  # the config's own
    assert 'pin_memory' not in cfg.test_dataloader
    assert apply_gpu_settings(cfg, training=True) == []  # a config that was saved and read again


def test_testing_gets_pinned_memory_alone(on_gpu):
    cfg = small()
    assert len(apply_gpu_settings(cfg, training=False)) == 2
    assert cfg.test_dataloader.pin_memory
    assert 'fused' not in cfg.optim_wrapper.optimizer
    assert 'pin_memory' not in cfg.train_dataloader


@pytest.mark.parametrize('case', ['cpu', 'option', 'config'])
def test_nothing_changes_where_they_are_off(monkeypatch, case):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: case != 'cpu')
    cfg = small()
    if case == 'config':
        cfg.gpu_settings = False
    before = deepcopy(cfg._cfg_dict)
    assert apply_gpu_settings(cfg, False if case == 'option' else None, training=True) == []
    assert cfg._cfg_dict == before


@pytest.mark.parametrize(
    ('change', 'fused'),
    [
        ({'optimizer': {'type': 'SGD', 'lr': 0.1}}, True),
        ({'optimizer': {'type': torch.optim.AdamW, 'lr': 0.1}}, True),
        ({'optimizer': {'type': 'LBFGS'}}, None),
        ({'optimizer': {'type': 'mmpretrain.Adam'}}, None),  # another class of that name
        ({'optimizer': {'type': 'AdamW', 'foreach': True}}, None),
        ({'optimizer': {'type': 'AdamW', 'fused': False}}, False),
        ({'type': 'AmpOptimWrapper'}, True),
        ({'type': 'ApexOptimWrapper'}, None),
    ],
)
def test_optimizers_that_have_a_fused_kernel(on_gpu, change, fused):
    cfg = small()
    cfg.optim_wrapper.update(change)
    apply_gpu_settings(cfg, training=True)
    assert cfg.optim_wrapper.optimizer.get('fused') is fused


def test_a_sharded_model_keeps_its_optimizer(on_gpu):
    cfg = load_config('dino-4scale_fast-itpn-l_8xb2-12e_coco-fsdp')
    apply_gpu_settings(cfg, training=True)
    assert 'fused' not in cfg.optim_wrapper.optimizer
    cfg.gpu_settings = {'static_graph': True}
    with pytest.raises(ValueError, match='static_graph is of DistributedDataParallel'):
        apply_gpu_settings(cfg, training=True)


@pytest.mark.parametrize(
    ('name', 'non_blocking'),
    [
        ('dino_fast-itpn-nano_shapes', True),
        ('upernet_fast-itpn-nano_shapes', None),  # mmseg's preprocessor does not take it
        ('pretrain_fast-itpn-nano_shapes-mfm', True),
        ('fast-itpn-t_16xb64-100e_in1k-224', None),  # nor mmpretrain's of classifiers
    ],
)
def test_configs_of_this_project_build_with_them(monkeypatch, name, non_blocking):
    cfg = load_config(name)
    pytest.importorskip(cfg.default_scope)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, 'is_available', lambda: True)
        apply_gpu_settings(cfg, training=True)
    assert cfg.train_dataloader.pin_memory
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))  # as the runner does
    assert cfg.model['data_preprocessor'].get('non_blocking') is non_blocking
    from mmengine.registry import MODELS, init_default_scope

    from mmitpn.testing.demo_inputs import without_pretrained

    init_default_scope(cfg.default_scope)
    model = MODELS.build(without_pretrained(cfg.model))
    assert model.data_preprocessor._non_blocking is bool(non_blocking)


def test_tf32_and_static_graph_are_asked_for(on_gpu, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, 'set_float32_matmul_precision', chosen.append)
    cfg = small()
    cfg.merge_from_dict({'gpu_settings.tf32': True, 'gpu_settings.static_graph': True, 'launcher': 'pytorch'})
    cfg.find_unused_parameters = True
    changes = apply_gpu_settings(cfg, training=True)
    assert chosen == ['high']
    assert any('TF32' in line for line in changes)
    assert cfg.model_wrapper_cfg == {
        'type': 'MMDistributedDataParallel',
        'find_unused_parameters': True,
        'broadcast_buffers': False,
        'static_graph': True,
    }
    cfg = Config({'gpu_settings': {'static_graph': True}})
    assert apply_gpu_settings(cfg, training=True) == []  # one process has no DDP
    assert 'model_wrapper_cfg' not in cfg


@pytest.mark.parametrize(
    ('given', 'error', 'words'),
    [
        ('yes', TypeError, "gpu_settings is 'yes'; allowed: True, False, or a dict with pin_memory"),
        ({'tf16': True}, ValueError, "gpu_settings has 'tf16'; allowed: pin_memory, fused_optimizer, tf32"),
        ({'tf32': 1}, TypeError, 'gpu_settings.tf32 is 1; allowed: True, False'),
    ],
)
def test_mistakes_are_reported(given, error, words):
    with pytest.raises(error, match=words.replace('(', r'\(')):
        read_gpu_settings(Config({'gpu_settings': given}))


@pytest.mark.parametrize('command', [['train', 'a.py'], ['test', 'a.py', 'b.pth']])
def test_the_command_lines_have_the_option(command):
    parse = import_module(f'mmitpn.commands.{command[0]}').parse_args
    assert parse(command[1:]).gpu_settings is None
    assert parse([*command[1:], '--no-gpu-settings']).gpu_settings is False
    assert parse([*command[1:], '--gpu-settings']).gpu_settings is True


def test_the_log_names_each_change(monkeypatch):
    lines = []
    monkeypatch.setattr(gpu_settings, 'print_log', lambda text, _: lines.append(text))
    gpu_settings.log_gpu_settings([])
    assert lines == []
    gpu_settings.log_gpu_settings(['a=True: since'])
    assert '--no-gpu-settings' in lines[0]
    assert lines[1:] == ['  a=True: since']


def test_a_fused_step_is_equal_up_to_rounding():
    """With clipped gradients and groups of different rates, as layer decay makes them."""
    results = []
    for fused in (None, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
        groups = [{'params': one.parameters(), 'lr': 1e-2 / (i + 1)} for i, one in enumerate(model)]
        optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.05, fused=fused)
        wrapper = OptimWrapper(optimizer, clip_grad={'max_norm': 0.1})
        for _ in range(3):
            wrapper.update_params(model(torch.randn(5, 8)).square().sum())
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('fused', [True, None])
def test_a_resumed_run_has_the_optimizer_of_its_checkpoint(monkeypatch, fused):
    """Also under the scaler of fp16, which fails where the groups that are loaded are not those that were built."""
    cfg = small()
    cfg.resume = True
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, 'is_available', lambda: True)
        apply_gpu_settings(cfg, training=True)
    assert 'fused' not in cfg.optim_wrapper.optimizer
    torch.manual_seed(0)
    model = nn.Linear(4, 4)

    def step(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        scaler = torch.amp.GradScaler('cpu')
        scaler.scale(model(torch.randn(2, 4)).sum()).backward()
        scaler.step(optimizer)
        return optimizer

    saved = step(torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)).state_dict()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer.load_state_dict(saved)
    step(optimizer)
    assert optimizer.param_groups[0]['fused'] is fused


@pytest.mark.parametrize(
    ('device', 'bf16', 'kind'),
    [
        ('cpu', False, 'mmitpn.BFloat16OptimWrapper'),
        ('cuda', True, 'mmitpn.BFloat16OptimWrapper'),
        ('cuda', False, 'AmpOptimWrapper'),
        ('npu', True, 'AmpOptimWrapper'),
    ],
)
def test_amp_is_bf16_where_the_device_has_it(monkeypatch, device, bf16, kind):
    monkeypatch.setattr(amp, 'get_device', lambda: device)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: bf16 and not including_emulation)
    cfg = small()
    apply_amp(cfg)
    assert cfg.optim_wrapper.type == kind
    assert cfg.optim_wrapper.get('loss_scale') == ('dynamic' if kind == 'AmpOptimWrapper' else None)
