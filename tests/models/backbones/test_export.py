"""Graphs of backbone and pyramid for images of any height and width: ``torch.export`` and ``torch.compile``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.export import Dim
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from mmitpn.models.backbones import ITPN, FastITPN
from mmitpn.models.necks import ITPNPyramid

UPERNET = Path(__file__).parents[3] / 'configs/upernet/upernet_fast-itpn-t_8xb2-160k_ade20k-512x512.py'
FEW = {'depths': (1, 0, 2), 'embed_dim': 48, 'num_heads': 3}
ONE = {**FEW, 'depths': (0, 0, 1)}  # dynamic sizes take a compiler long
GATHERING = {'window_size': 16, 'num_tokens': 4}
MIGRATION = {'at': (0,), 'keep_ratio': 0.6}
# The first makes the graph. The position embedding is learned for 224x224: 224 and 14 tokens must not become constants.
SIZES = [(256, 384), (224, 224), (160, 320)]
WINDOWS = [(512, 768), (512, 512), (768, 1024)]


class WithPyramid(nn.Module):
    def __init__(self, backbone, **settings):
        super().__init__()
        self.backbone = backbone
        self.neck = ITPNPyramid(backbone.out_channels, out_channels=24, **settings)

    def forward(self, x):
        maps = self.backbone(x)
        return maps, self.neck(maps)


def build(cls=FastITPN, arch=FEW, **settings) -> nn.Module:
    torch.manual_seed(1)
    model = cls(arch, **settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def export(model, size, multiple, *, least=2):
    height, width = (multiple * Dim(name, min=least, max=64) for name in ('h', 'w'))
    program = torch.export.export(model, (torch.randn(2, 3, *size),), dynamic_shapes=({2: height, 3: width},))
    return program.module()


@torch.no_grad()
def check_equal(graph, model, sizes):
    for size in sizes:
        x = torch.randn(2, 3, *size)
        for found, expected in zip(tree_leaves(graph(x)), tree_leaves(model(x)), strict=True):
            assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize('example', [0, 1], ids=['another-size', 'the-grid-s-own'])
def test_exported_backbone_takes_any_multiple_of_16(example):
    model = build(arch=ONE)
    check_equal(export(model, SIZES[example], 16), model, SIZES)


@pytest.mark.thorough
@pytest.mark.parametrize('settings', [{}, {'extra_pool': 'max', 'concat_backbone': True}, {'start_level': 1}])
def test_exported_pyramid_takes_any_multiple_of_16(settings):
    model = WithPyramid(build(), **settings).eval()
    check_equal(export(model, SIZES[0], 16), model, SIZES)


@pytest.mark.thorough
@pytest.mark.parametrize('relative_position', [None, 'table', 'decomposed'])
def test_exported_itpn(relative_position):
    model = build(ITPN, relative_position=relative_position)
    check_equal(export(model, SIZES[0], 16), model, SIZES)


@pytest.mark.parametrize(
    'settings',
    [
        {'arch': ONE, 'token_gathering': {**GATHERING, 'learned': True}, 'token_migration': MIGRATION},
        pytest.param({'token_gathering': GATHERING, 'token_migration': MIGRATION}, marks=pytest.mark.thorough),
        pytest.param({'token_gathering': GATHERING}, marks=pytest.mark.thorough),
        pytest.param({'token_gathering': {**GATHERING, 'pool': 'query'}}, marks=pytest.mark.thorough),
        pytest.param({'token_gathering': {'num_tokens': 0, 'global_blocks': (1,)}}, marks=pytest.mark.thorough),
    ],
    ids=['both', 'both-and-a-block', 'gathering', 'gathering-by-query', 'windows'],
)
def test_exported_windows_take_any_multiple_of_their_size(settings):
    model = build(**settings, img_size=512)
    check_equal(export(model, WINDOWS[0], 256), model, WINDOWS)


@pytest.mark.thorough
@pytest.mark.parametrize('settings', [{}, {'score': 'neighborhood', 'rounds': 3, 'follow': False}])
def test_exported_migration_takes_any_multiple_of_16(settings):
    model = build(token_migration={**MIGRATION, **settings})
    check_equal(export(model, SIZES[0], 16), model, SIZES)


def test_other_sizes_are_refused():
    model = build(arch=ONE)
    graph = export(model, SIZES[0], 16)
    with pytest.raises((AssertionError, RuntimeError), match=r'Guard failed: .*% 16 == 0|divisible|16'):
        graph(torch.randn(2, 3, 230, 256))
    with pytest.raises(torch._dynamo.exc.UserError, match=r'250 of input Tensor to be of the form 16\*h'):
        export(model, (250, 384), 16)


def check_one_graph(model, sizes, *, dynamic=True):
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(model, backend='aot_eager', dynamic=dynamic, fullgraph=True)
    check_equal(compiled, model, sizes)
    assert counters['stats']['unique_graphs'] == 1
    torch.compiler.reset()


@pytest.mark.thorough
def test_compiled_with_the_pyramid_for_two_sizes_is_one_graph():
    check_one_graph(WithPyramid(build()), SIZES[:2])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ('settings', 'sizes'),
    [
        ({'token_gathering': GATHERING, 'token_migration': MIGRATION}, WINDOWS),
        ({'token_gathering': {**GATHERING, 'learned': True}}, WINDOWS),
        ({'token_migration': MIGRATION}, SIZES),
    ],
    ids=['both', 'gathering', 'migration'],
)
def test_compiled_reduction_for_two_sizes_is_one_graph(settings, sizes):
    check_one_graph(build(arch=ONE, **settings), sizes[:2])


def test_compiled_for_one_size_is_one_graph():
    model = WithPyramid(build(arch=ONE, token_gathering=GATHERING, token_migration=MIGRATION))
    check_one_graph(model, [(300, 500)], dynamic=False)


@pytest.mark.thorough
def test_a_compiled_training_step_has_the_same_gradients():
    torch.compiler.reset()
    model, x = (
        build(arch=ONE, token_gathering=GATHERING, token_migration=MIGRATION).train(),
        torch.randn(2, 3, 300, 500),
    )
    gradients = []
    for run in (model, torch.compile(model, backend='aot_eager', fullgraph=True)):
        model.zero_grad()
        sum(out.square().mean() for out in run(x)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for found, expected in zip(*reversed(gradients), strict=True):
        assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    torch.compiler.reset()


@pytest.mark.parametrize('dynamic', [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_upernet_is_one_graph(dynamic):
    pytest.importorskip('mmseg')
    from mmengine.config import Config
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    cfg = Config.fromfile(UPERNET).model
    cfg.backbone.arch = ONE
    cfg.neck.update(in_channels=[12, 24, 48], out_channels=24)
    cfg.decode_head.update(in_channels=[36, 48, 72, 72], channels=16, num_classes=5)
    cfg.auxiliary_head.update(in_channels=72, channels=16, num_classes=5)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg).eval()
    check_one_graph(model, [(128, 192), (224, 224)][: 1 + dynamic], dynamic=dynamic)  # mode='tensor'


def test_a_static_graph_of_the_own_grid_has_no_resampling():
    program = torch.export.export(build(), (torch.randn(1, 3, 224, 224),))
    assert not any('upsample' in str(node.target) for node in program.graph.nodes)
