"""init_cfg and init_weights of the backbones and necks."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from torch import nn

from mmitpn.checkpoint import PretrainedModule


class Initialised(PretrainedModule):
    """Initialises itself when it is built."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.linear = nn.Linear(2, 2)
        nn.init.constant_(self.linear.weight, 7)


class Model(BaseModule):
    """A model as a host builds it."""

    def __init__(self, backbone, neck):
        super().__init__()
        self.backbone, self.neck = backbone, neck


@pytest.fixture
def file(tmp_path, pretrained):
    torch.save({'module': pretrained}, tmp_path / 'f.pth')
    return str(tmp_path / 'f.pth')


def test_own_initialisation_stays():
    module = Initialised()
    module.init_weights()
    assert (module.linear.weight == 7).all()


def test_other_types_of_init_cfg_go_to_mmengine():
    module = Initialised([{'type': 'Constant', 'layer': 'Linear', 'val': 3.0, 'bias': 1.0}])
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


def test_pretrained_weights_come_after_every_other_initialisation(file, pretrained, small_backbone):
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
        Initialised(init_cfg)
