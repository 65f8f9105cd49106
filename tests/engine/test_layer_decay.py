from __future__ import annotations

import logging
import math

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

DECAY = 0.8
LR = 1e-3
WD = 0.05


class Block(nn.Module):
    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, dim)
        self.gamma_1 = nn.Parameter(torch.ones(dim))


class Backbone(nn.Module):
    """Three blocks, so five layers: stem, three blocks, and what comes after them."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 9, 4))
        self.patch_embed = nn.Conv2d(3, 4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.q_bias = nn.Parameter(torch.zeros(4))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        name = param_name[len(prefix) :]
        if name == 'pos_embed' or name.startswith('patch_embed'):
            return 0, 5
        if name.startswith('blocks'):
            return int(name.split('.')[1]) + 1, 5
        return 4, 5


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Embedding(3, 4)
        self.fc = nn.Linear(4, 2)


class Model(nn.Module):
    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone or Backbone()
        self.neck = nn.Linear(4, 4)
        self.head = Head()


def build(model: nn.Module, *, wrapper: str = 'OptimWrapper', **paramwise):
    cfg = {
        'type': wrapper,
        'optimizer': {'type': 'AdamW', 'lr': LR, 'weight_decay': WD},
        'constructor': 'mmitpn.LayerDecayOptimWrapperConstructor',
        'paramwise_cfg': {'decay_rate': DECAY, **paramwise},
    }
    return build_optim_wrapper(model, cfg)


def settings(model: nn.Module, optim_wrapper) -> dict[str, tuple[float, float]]:
    """Learning-rate scale and weight decay of each parameter, by name."""
    names = {param: name for name, param in model.named_parameters()}
    return {
        names[param]: (group['lr'] / LR, group['weight_decay'])
        for group in optim_wrapper.optimizer.param_groups
        for param in group['params']
    }


def test_scale_falls_one_step_a_layer_from_the_head_down():
    model = Model()
    found = settings(model, build(model))
    expected = {'backbone.patch_embed.weight': 4, 'backbone.pos_embed': 4, 'backbone.norm.weight': 0}
    expected |= {f'backbone.blocks.{i}.fc.weight': 3 - i for i in range(3)}
    expected |= {'neck.weight': 0, 'head.fc.weight': 0}
    for name, steps in expected.items():
        assert found[name][0] == pytest.approx(DECAY**steps), name


def test_every_parameter_is_in_one_group():
    model = Model()
    placed = [p for group in build(model).optimizer.param_groups for p in group['params']]
    assert len(placed) == len(set(placed)) == len(list(model.parameters()))


def test_no_weight_decay_where_it_hurts():
    model = Model()
    found = settings(model, build(model))
    free = {name for name, (_, decay) in found.items() if decay == 0}
    assert free == {name for name, p in model.named_parameters() if p.ndim <= 1 or name == 'backbone.pos_embed'}
    assert all(decay == WD for name, (_, decay) in found.items() if name not in free)


def test_own_multipliers():
    model = Model()
    found = settings(model, build(model, neck_lr_mult=0.5, embedding_decay_mult=0.0, bias_decay_mult=1.0))
    assert found['neck.weight'][0] == pytest.approx(0.5)
    assert found['head.query.weight'] == (1.0, 0.0)
    assert found['head.fc.bias'][1] == WD


def test_longest_custom_key_multiplies_the_scale_and_keeps_the_decay_rules():
    model = Model()
    keys = {'blocks': {'lr_mult': 0.1}, 'blocks.2': {'lr_mult': 0.5}, 'head.fc': {'decay_mult': 2.0}}
    found = settings(model, build(model, custom_keys=keys))
    assert found['backbone.blocks.0.fc.weight'] == (pytest.approx(0.1 * DECAY**3), WD)
    assert found['backbone.blocks.2.fc.weight'][0] == pytest.approx(0.5 * DECAY)
    assert found['backbone.blocks.2.fc.bias'][1] == 0
    assert found['head.fc.weight'] == (1.0, 2 * WD)


def test_frozen_parameters_are_left_out():
    model = Model()
    model.backbone.patch_embed.requires_grad_(False)
    assert 'backbone.patch_embed.weight' not in settings(model, build(model))


def test_a_wrapped_model_gets_the_same_groups():
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = Model()
    assert settings(model, build(Wrapper(model))) == settings(model, build(model))


def test_a_compiled_backbone_gets_the_same_groups():
    model = Model()
    plain = [group['lr'] for group in build(model).optimizer.param_groups]
    model.backbone = torch.compile(model.backbone)
    assert [group['lr'] for group in build(model).optimizer.param_groups] == plain


def test_works_with_amp(monkeypatch):
    for check in ('is_cuda_available', 'is_npu_available'):
        monkeypatch.setattr(f'mmengine.optim.optimizer.amp_optimizer_wrapper.{check}', lambda: True)
    assert isinstance(build(Model(), wrapper='AmpOptimWrapper'), AmpOptimWrapper)


def test_prints_the_groups_as_a_table():
    class Lines(logging.Handler):
        text = ''

        def emit(self, record: logging.LogRecord) -> None:
            self.text += f'{record.getMessage()}\n'

    lines, logger = Lines(), MMLogger.get_current_instance()
    logger.addHandler(lines)
    try:
        groups = build(Model()).optimizer.param_groups
    finally:
        logger.removeHandler(lines)
    assert f'{len(groups)} parameter groups' in lines.text
    table = lines.text[lines.text.index('Layer decay') :].splitlines()
    rows = [row.strip('| ').split() for row in table[3 : 3 + len(groups)]]  # below the heading and its line
    assert [int(row[-1].replace(',', '')) for row in rows] == [sum(p.numel() for p in g['params']) for g in groups]
    assert [row[0] for row in rows] == [g['part'] for g in groups]


@pytest.mark.parametrize('rate', [0, -0.5, 1.5, None, 'high', True])
def test_decay_rate_out_of_range(rate):
    with pytest.raises(ValueError, match='decay_rate'):
        build(Model(), decay_rate=rate)


@pytest.mark.parametrize(
    ('setting', 'says'),
    [
        ({'layer_decay_rate': 0.9}, 'decay_rate'),
        ({'num_layers': 12}, 'asked from the backbone'),
        ({'nope': 1}, 'allowed'),
    ],
)
def test_unknown_settings(setting, says):
    with pytest.raises(ValueError, match=says):
        build(Model(), **setting)


@pytest.mark.parametrize('keys', [{'head': {'lr': 0.1}}, {'head': 0.1}])
def test_unknown_custom_settings(keys):
    with pytest.raises(ValueError, match='custom_keys'):
        build(Model(), custom_keys=keys)


def test_a_backbone_without_depths():
    with pytest.raises(ValueError, match=r'backbone \(Linear\).*get_layer_depth'):
        build(Model(nn.Linear(2, 2)))


def test_a_model_without_a_backbone():
    with pytest.raises(ValueError, match="no part called 'backbone' in Linear"):
        build(nn.Linear(2, 2))


def test_a_layer_outside_the_count():
    class Broken(Backbone):
        def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
            return 5, 5

    with pytest.raises(ValueError, match='layer 5 of 5'):
        build(Model(Broken()))


def test_a_backbone_that_does_not_know_its_blocks():
    class Blind(Backbone):
        def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
            return (0 if 'embed' in param_name else 4), 5

    with pytest.raises(ValueError, match='does not know the names of its blocks'):
        build(Model(Blind()))


def test_a_parameter_in_two_groups():
    model = Model()
    model.head.fc = model.backbone.blocks[0].fc
    with pytest.raises(ValueError, match='two groups'):
        build(model)


def test_a_parameter_shared_within_a_part_counts_once():
    model = Model()
    model.head.twin = model.head.fc
    placed = [p for group in build(model).optimizer.param_groups for p in group['params']]
    assert sum(p is model.head.fc.weight for p in placed) == 1


@pytest.mark.parametrize('arch', ['nano', 'tiny'])
def test_the_last_block_of_fast_itpn_is_one_step_below_the_head(arch):
    from mmitpn import FastITPN

    backbone = FastITPN(arch)
    model = Model(backbone)
    found = settings(model, build(model))
    last = max(int(name.split('.')[2]) for name in found if name.startswith('backbone.blocks.'))
    rates = {name: scale for name, (scale, _) in found.items() if f'backbone.blocks.{last}.' in name}
    assert rates
    assert all(math.isclose(scale, DECAY) for scale in rates.values())
    smallest = min(scale for scale, _ in found.values())
    assert found['backbone.pos_embed'] == (smallest, 0.0)
    assert found['backbone.patch_embed.proj.weight'][0] == smallest


def test_mmpretrain_backbones_work():
    transformers = pytest.importorskip('mmpretrain.models')
    backbone = transformers.VisionTransformer(
        {'embed_dims': 8, 'num_layers': 2, 'num_heads': 2, 'feedforward_channels': 8}
    )
    model = Model(backbone)
    found = settings(model, build(model))
    assert found['backbone.layers.1.ffn.layers.1.weight'][0] == pytest.approx(DECAY)
    assert found['backbone.pos_embed'] == (pytest.approx(DECAY**3), 0.0)


def test_mmpretrains_constructor_takes_the_backbone():
    """It asks ``get_layer_depth`` for the parameters of the head too."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
    from mmpretrain.models import ImageClassifier

    backbone = {'type': 'mmitpn.FastITPN', 'arch': {'depths': (1, 1, 2), 'embed_dim': 32, 'num_heads': 1}}
    head = {'type': 'LinearClsHead', 'num_classes': 3, 'in_channels': 32}
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = ImageClassifier(backbone | {'out_indices': (2,)}, head=head)
    build = LearningRateDecayOptimWrapperConstructor(
        {'optimizer': {'type': 'AdamW', 'lr': 1.0, 'weight_decay': 0.05}}, {'layer_decay_rate': 0.5}
    )
    rates = {id(param): group['lr'] for group in build(model).param_groups for param in group['params']}
    groups = {name: rates[id(param)] for name, param in model.named_parameters()}
    assert groups['head.fc.weight'] == 1
    assert groups['backbone.blocks.1.norm1.weight'] == 0.5
    assert groups['backbone.patch_embed.proj.weight'] == 0.5 ** model.backbone.get_layer_depth('norm.weight')[0]
