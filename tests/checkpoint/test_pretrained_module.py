"""Modules that load a file themselves: ``from_pretrained``, ``init_cfg`` and ``init_weights``."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import nn

from mmitpn import ITPN, FastITPN, ITPNPyramid
from mmitpn.checkpoint import PretrainedModule, QuietInit, load_pretrained

SMALL = {'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1}
IMAGE = torch.linspace(-1, 1, 3 * 48 * 64).view(1, 3, 48, 64)


class Model(BaseModule):
    """What a detector of mmdet looks like."""

    def __init__(self, backbone, neck=None):
        super().__init__()
        self.backbone, self.neck = backbone, neck


@pytest.fixture
def saved(tmp_path):
    """A function that writes weights to a file and returns its path."""

    def write(state):
        torch.save({'module': state}, tmp_path / 'f.pt')
        return str(tmp_path / 'f.pt')

    return write


def same(module, other):
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize('layer_scale', [True, False])
@pytest.mark.parametrize('grid', [14, 16])
def test_a_backbone_takes_everything_from_the_file(saved, authors_weights, layer_scale, grid):
    state = authors_weights(grid=grid, layer_scale=layer_scale)
    model = FastITPN.from_pretrained(saved(state))
    expected = FastITPN(SMALL, img_size=16 * grid, layer_scale_init_value=0.1 if layer_scale else None)
    load_pretrained(expected, state)
    assert (model.arch, model.grid, model.training) == (expected.arch, (grid, grid), False)
    assert same(model, expected)


def test_the_authors_outputs(reference_case, assert_matches_reference):
    reference = reference_case('fast_tiny_cls')
    model = FastITPN.from_pretrained({'model': reference.weights})
    assert model.arch == {'depths': (1, 1, 12), 'embed_dim': 384, 'num_heads': 6}
    with torch.no_grad():
        outs = model(reference.image)
    for out, expected in zip(outs, reference.case['outs'], strict=True):
        assert_matches_reference(out, expected)


def test_settings_go_before_those_of_the_file(saved, authors_weights):
    file = saved(authors_weights(grid=16))
    model = FastITPN.from_pretrained(
        file,
        arch=SMALL,
        img_size=160,
        out_indices=(2,),
        token_gathering={'window_size': 2, 'num_tokens': 1},
    )
    assert (model.grid, model.out_indices, model.token_reduction is None) == ((10, 10), (2,), False)
    expected = FastITPN(SMALL, img_size=160)
    load_pretrained(expected, file)
    assert same(model, expected)
    with pytest.raises(TypeError, match='out_indexes'):
        FastITPN.from_pretrained(file, out_indexes=(2,))
    with pytest.raises(ValueError, match=r'leave init_cfg=.* out'):
        FastITPN.from_pretrained(file, init_cfg={'type': 'Pretrained', 'checkpoint': file})


@pytest.mark.parametrize('relative', [None, 'table', 'decomposed'])
@pytest.mark.parametrize('layer_scale', [True, False])
def test_itpn(saved, authors_itpn_weights, relative, layer_scale):
    state = authors_itpn_weights(dim=128, grid=16, relative=relative, window=7, layer_scale=layer_scale)
    model = ITPN.from_pretrained(saved(state))
    assert (model.grid, model.blocks[0].attn.relative_position, model.training) == ((16, 16), relative, False)
    if relative:
        assert model.blocks[0].attn.window == 7
    expected = ITPN(
        {'depths': (1, 2, 3), 'embed_dim': 128, 'num_heads': 2},
        img_size=256,
        relative_position=relative,
        relative_window=7,
        layer_scale_init_value=0.1 if layer_scale else None,
    )
    load_pretrained(expected, state)
    assert same(model, expected)


@pytest.mark.parametrize('family', ['fast', 'linear'])
@pytest.mark.parametrize('out_channels', [24, 64])
def test_a_pyramid(saved, authors_weights, authors_itpn_weights, family, out_channels):
    depth = 1 if family == 'fast' else 2
    build = authors_weights if family == 'fast' else authors_itpn_weights
    state = build(pyramid=out_channels, **({} if family == 'fast' else {'depth': 2}))
    file = saved(state)
    neck = ITPNPyramid.from_pretrained(file, num_outs=4, extra_pool='max')
    expected = ITPNPyramid((16, 32, 64), out_channels=out_channels, kind=family, depth=depth, num_outs=4)
    load_pretrained(expected, state)
    assert (neck.in_channels, neck.num_outs, neck.extra_pool, neck.training) == ((16, 32, 64), 4, 'max', False)
    assert same(neck, expected)
    backbone = (FastITPN if family == 'fast' else ITPN).from_pretrained(file)
    with torch.no_grad():
        levels = neck(backbone(IMAGE))
    assert [tuple(x.shape) for x in levels] == [(1, out_channels, *side) for side in ((12, 16), (6, 8), (3, 4), (2, 2))]


def test_a_pyramid_of_another_width_of_blocks(saved):
    source = ITPNPyramid((16, 32, 64), out_channels=24, hidden_channels=40, depth=3)
    neck = ITPNPyramid.from_pretrained(saved(source.state_dict()))
    assert same(neck, source)


def test_a_checkpoint_of_a_whole_model_and_a_prefix(tmp_path):
    backbone, neck = FastITPN(SMALL, img_size=256), ITPNPyramid((16, 32, 64), out_channels=24)
    model = torch.nn.ModuleDict({'backbone': backbone, 'neck': neck, 'head': torch.nn.Linear(2, 2)})
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'epoch_1.pth')
    assert same(FastITPN.from_pretrained(tmp_path / 'epoch_1.pth'), backbone)
    assert same(ITPNPyramid.from_pretrained(tmp_path / 'epoch_1.pth'), neck)
    torch.save({f'teacher.{name}': value for name, value in backbone.state_dict().items()}, tmp_path / 't.pth')
    assert same(FastITPN.from_pretrained(tmp_path / 't.pth', prefix='teacher'), backbone)


@pytest.mark.parametrize(
    ('cls', 'weights', 'settings', 'message'),
    [
        (
            FastITPN,
            'fast',
            {'arch': 'large'},
            r"it holds 1/2/3 blocks, 64 channels, but arch='large' .*2/2/40 blocks, 768",
        ),
        (FastITPN, 'fast', {'arch': {**SMALL, 'depths': (1, 2, 2)}}, r'1/2/3 blocks.*asks for 1/2/2 blocks, 64'),
        (FastITPN, 'itpn', {}, r'of the family iTPN: use ITPN\.from_pretrained'),
        (ITPN, 'fast', {}, r'of the family Fast-iTPN: use FastITPN\.from_pretrained'),
        (FastITPN, 'resnet', {}, r'not weights of the iTPN family: it looks like a ResNet'),
        (ITPNPyramid, 'resnet', {}, r'not weights of the iTPN family: it looks like a ResNet'),
        (ITPNPyramid, 'finetuned', {}, r'there is no pyramid in it: it is Fast-iTPN without a pyramid'),
        (FastITPN, 'pyramid', {}, r'there is no backbone in it, or it is cut off: it is mmitpn'),
        (FastITPN, 'fast', {'layer_scale_init_value': None}, r'set layer_scale_init_value=0\.1 on the backbone'),
        (ITPNPyramid, 'fast', {'in_channels': (8, 16, 32)}, r'set in_channels=\(16, 32, 64\) on the neck'),
        (ITPNPyramid, 'fast', {'out_channels': 12}, r'set out_channels=24 on the neck'),
        (ITPNPyramid, 'fast', {'kind': 'linear'}, r"set kind='fast' on the neck"),
    ],
)
def test_files_that_do_not_fit(
    saved, authors_weights, authors_itpn_weights, finetuned, cls, weights, settings, message
):
    state = {
        'fast': lambda: authors_weights(pyramid=24),
        'itpn': authors_itpn_weights,
        'resnet': lambda: {'conv1.weight': torch.zeros(1), 'layer1.0.conv1.weight': torch.zeros(1)},
        'finetuned': lambda: finetuned,
        'pyramid': ITPNPyramid((16, 32, 64)).state_dict,
    }[weights]()
    file = saved(state)
    with pytest.raises(ValueError, match=message) as raised:
        cls.from_pretrained(file, **settings)
    assert file in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'gone\.pth does not exist'):
        FastITPN.from_pretrained(tmp_path / 'gone.pth')


# --- modules that were not initialized, and what initialization logs -----------------------------------------------


@pytest.fixture
def init_cfg(saved, pretrained):
    return {'type': 'Pretrained', 'checkpoint': saved(pretrained)}


@pytest.mark.parametrize('part', ['backbone', 'neck'])
def test_random_weights_in_place_of_the_file_are_warned_of_once(init_cfg, part):
    if part == 'backbone':
        module, inputs = FastITPN(SMALL, init_cfg=init_cfg), IMAGE
    else:
        module, inputs = ITPNPyramid((16, 32, 64), out_channels=24, init_cfg=init_cfg), FastITPN(SMALL)(IMAGE)
    with pytest.warns(UserWarning, match=r'runs with random weights: .*\.from_pretrained\(FILE\)'):
        module(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        module(inputs)


@pytest.mark.parametrize(
    'load',
    [
        lambda model: model.init_weights(),
        lambda model: model.load_state_dict(FastITPN(SMALL).state_dict()),
        lambda model: load_pretrained(model, FastITPN(SMALL).state_dict()),
    ],
)
def test_a_loaded_module_is_not_warned_of(init_cfg, load):
    models = [FastITPN(SMALL, init_cfg=init_cfg), FastITPN(SMALL), FastITPN.from_pretrained(init_cfg['checkpoint'])]
    load(models[0])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for model in models:
            model(IMAGE)


@pytest.fixture
def logger():
    """A function that gives mmengine's current logger, with or without a file; it is gone afterwards."""
    names = []

    def get(**settings):
        names.append(f'test_from_pretrained_{len(names)}')
        return MMLogger.get_instance(names[-1], **settings)

    yield get
    for name in names:
        MMLogger._instance_dict.pop(name)


def test_initialization_does_not_list_every_parameter(init_cfg, logger):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger().addHandler(handler)
    FastITPN(SMALL, init_cfg=init_cfg).init_weights()
    ITPNPyramid((16, 32, 64), out_channels=24, init_cfg=init_cfg).init_weights()
    assert [record.getMessage().split(':')[0] for record in records] == [f'Weights from {init_cfg["checkpoint"]}'] * 2
    assert not any('patch_embed' in record.getMessage() for record in records)


def test_a_model_logs_details_only_to_its_file(init_cfg, tmp_path, logger):
    class Quiet(QuietInit, Model):
        pass

    own = logger(log_file=str(tmp_path / 'run.log'))
    streams = [handler for handler in own.handlers if not isinstance(handler, logging.FileHandler)]
    shown = []
    for handler in streams:
        handler.emit = shown.append
    Quiet(FastITPN(SMALL, init_cfg=init_cfg)).init_weights()
    assert [record.getMessage().split(':')[0] for record in shown] == [f'Weights from {init_cfg["checkpoint"]}']
    text = (tmp_path / 'run.log').read_text()
    assert 'backbone.patch_embed.proj.weight - torch.Size([16, 3, 4, 4])' in text
    assert f'load_pretrained from {init_cfg["checkpoint"]}' in text
    logger()
    model = Quiet(FastITPN(SMALL))
    logger_of_model, records = MMLogger.get_current_instance(), []
    for handler in logger_of_model.handlers:
        handler.emit = records.append
    model.init_weights()
    assert records == []


def test_from_pretrained_inside_a_model_stays_as_it_is(init_cfg):
    backbone = FastITPN.from_pretrained(init_cfg['checkpoint'])
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    Model(backbone).init_weights()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


# --- init_cfg -------------------------------------------------------------------------------------------------------


class SelfInitialized(PretrainedModule):
    """Initializes itself when it is built."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.linear = nn.Linear(2, 2)
        nn.init.constant_(self.linear.weight, 7)


@pytest.fixture
def file(tmp_path, pretrained):
    torch.save({'module': pretrained}, tmp_path / 'f.pth')
    return str(tmp_path / 'f.pth')


def test_own_initialization_stays():
    module = SelfInitialized()
    module.init_weights()
    assert (module.linear.weight == 7).all()


def test_other_types_of_init_cfg_go_to_mmengine():
    module = SelfInitialized([{'type': 'Constant', 'layer': 'Linear', 'val': 3.0, 'bias': 1.0}])
    module.init_weights()
    assert (module.linear.weight == 3).all()
    assert module.init_cfg[0]['type'] == 'Constant'


@pytest.mark.parametrize('cfg_type', [dict, ConfigDict])
def test_pretrained_in_a_model(file, pretrained, small_backbone, small_neck, logged, cfg_type):
    init_cfg = cfg_type(type='Pretrained', checkpoint=file)
    model = Model(small_backbone(init_cfg=init_cfg), small_neck(init_cfg=[init_cfg]))
    model.init_weights()
    assert torch.equal(model.backbone.norm.weight, pretrained['norm.weight'])
    assert torch.equal(model.neck.align16.bias, pretrained['align_dim_16tofpn.bias'])
    assert len(logged) == 2
    assert model.backbone.is_init
    assert model.backbone.init_cfg == init_cfg


def test_pretrained_weights_come_after_every_other_initialization(file, pretrained, small_backbone):
    cfgs = [{'type': 'Pretrained', 'checkpoint': file}, {'type': 'Constant', 'layer': 'LayerNorm', 'val': 3.0}]
    backbone = small_backbone(init_cfg=cfgs)
    backbone.init_weights()
    assert torch.equal(backbone.norm.weight, pretrained['norm.weight'])


def test_a_file_that_does_not_fit_stops_the_model(file, small_backbone, small_neck):
    model = Model(
        small_backbone(layer_scale_init_value=None, init_cfg={'type': 'Pretrained', 'checkpoint': file}), small_neck()
    )
    with pytest.raises(ValueError, match='layer_scale_init_value'):
        model.init_weights()
    assert not model.backbone.is_init


def test_strict_and_prefix_are_passed_on(tmp_path, pretrained, small_backbone):
    torch.save({f'teacher.{name}': value for name, value in pretrained.items()}, tmp_path / 'f.pth')
    cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'f.pth'), 'prefix': 'teacher.', 'strict': False}
    backbone = small_backbone(layer_scale_init_value=None, init_cfg=cfg)
    backbone.init_weights()
    assert torch.equal(backbone.norm.weight, pretrained['norm.weight'])


def test_a_missing_file(tmp_path, small_backbone):
    backbone = small_backbone(init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'missing.pth')})
    with pytest.raises(FileNotFoundError, match=r'missing.pth does not exist'):
        backbone.init_weights()


@pytest.mark.parametrize(
    ('init_cfg', 'error', 'message'),
    [
        ({'type': 'Pretrained'}, ValueError, "needs checkpoint='PATH or URL', but got None"),
        ({'type': 'Pretrained', 'checkpoint': None}, ValueError, 'leave init_cfg out'),
        ({'type': 'Pretrained', 'checkpoint': 'f', 'strickt': True}, ValueError, r"unknown keys \['strickt'\]"),
        ({'checkpoint': 'f'}, TypeError, "must be a dict with a 'type'"),
        ('f.pth', TypeError, "must be a dict with a 'type'"),
    ],
)
def test_bad_init_cfg_is_refused_when_built(init_cfg, error, message):
    with pytest.raises(error, match=message):
        SelfInitialized(init_cfg)
