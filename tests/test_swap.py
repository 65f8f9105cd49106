"""The backbone in configs of the installed frameworks, swapped by the tool."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmitpn.commands import swap as swap_command
from mmitpn.engine.config_utils import register_host_configs, resolve_config
from mmitpn.models.backbones import ARCHS
from mmitpn.swap import LAYER_DECAY, SwapError, plan_swap, write_config

DETECTORS = {
    'faster-rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
    'mask-rcnn': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'fcos': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'faster-rcnn-c4': 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco',
}
SEGMENTORS = {
    'upernet': 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512',
    'fcn': 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512',
    'deeplabv3plus': 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
}
WORK = [name for name in DETECTORS if not name.endswith('c4')]


def swap(config: str, out: Path, *arguments: str) -> int:
    return swap_command.main([config, '--arch', 'nano', '-o', str(out), *arguments])


@pytest.mark.slow
@pytest.mark.parametrize('name', WORK)
def test_detectors_train_and_predict(name, tmp_path, capsys):
    pytest.importorskip('mmdet')
    assert swap(DETECTORS[name], tmp_path / 'out.py') == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert 'one training step' in shown
    assert 'model.backbone' in shown
    cfg = Config.fromfile(tmp_path / 'out.py')
    assert cfg.model.backbone.type == 'mmitpn.FastITPN'
    assert cfg.model.neck.type == 'mmitpn.ITPNPyramid'
    assert cfg.optim_wrapper.constructor == 'mmitpn.LayerDecayOptimWrapperConstructor'
    assert len((tmp_path / 'out.py').read_text().splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name == 'fcn' else pytest.mark.thorough) for name in SEGMENTORS]
)
def test_segmentors_train_and_predict(name, tmp_path, capsys):
    pytest.importorskip('mmseg')
    register_host_configs()
    assert swap(SEGMENTORS[name], tmp_path / 'out.py') == 0, capsys.readouterr().err
    cfg = Config.fromfile(tmp_path / 'out.py')
    assert cfg.model.pretrained is None
    assert cfg.model.auxiliary_head.in_channels == 256


def test_the_strides_decide_the_levels(tmp_path):
    pytest.importorskip('mmdet')
    assert swap(DETECTORS['retinanet'], tmp_path / 'out.py', '--no-trial', '--weights', 'w.pth') == 0
    model = Config.fromfile(tmp_path / 'out.py').model
    assert (model.neck.start_level, model.neck.num_outs, model.neck.out_channels) == (1, 5, 256)
    assert model.backbone.init_cfg == model.neck.init_cfg == {'type': 'Pretrained', 'checkpoint': 'w.pth'}
    assert model.backbone.with_cp


def test_dilated_backbones_give_the_level_of_the_same_stride(tmp_path):
    pytest.importorskip('mmseg')
    register_host_configs()
    assert swap(SEGMENTORS['fcn'], tmp_path / 'out.py', '--no-trial', '--no-checkpointing') == 0
    model = Config.fromfile(tmp_path / 'out.py').model
    assert (model.decode_head.in_index, model.auxiliary_head.in_index) == (1, 1)
    assert not model.backbone.with_cp


def test_heads_of_branches_get_the_level_of_their_stride(tmp_path, capsys):
    """STDC's maps have the strides 8, 16, 8, 8; its decode head takes the last one by default, or by its index."""
    pytest.importorskip('mmseg')
    register_host_configs()
    config = 'mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024'
    assert swap(config, tmp_path / 'out.py', '--no-trial', '--no-checkpointing') == 0, capsys.readouterr().err
    model = Config.fromfile(tmp_path / 'out.py').model
    assert (model.neck.start_level, model.neck.num_outs) == (1, 2)
    assert model.decode_head.in_index == 0
    assert [(head.in_index, head.in_channels) for head in model.auxiliary_head] == [(0, 256), (1, 256), (0, 256)]
    pytest.importorskip('mmdet')
    assert swap('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco', tmp_path / 'other.py', '--no-trial') == 2
    assert 'do not get coarser one after the other (strides [32, 16, 8])' in capsys.readouterr().err


def test_means_of_caffe_become_those_of_the_weights(tmp_path):
    pytest.importorskip('mmdet')
    assert swap(DETECTORS['fcos'], tmp_path / 'out.py', '--no-trial') == 0
    settings = Config.fromfile(tmp_path / 'out.py').model.data_preprocessor
    assert (settings.mean, settings.std) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    assert settings.bgr_to_rgb


def test_what_cannot_be_swapped_is_reported(tmp_path, capsys):
    (tmp_path / 'c.py').write_text("default_scope = 'mmdet'\nmodel = dict(type='X', encoder=dict())\n")
    assert swap(str(tmp_path / 'c.py'), tmp_path / 'out.py') == 2
    assert 'model has no backbone (its settings: type, encoder)' in capsys.readouterr().err
    assert not (tmp_path / 'out.py').exists()
    assert swap('nowhere.py', tmp_path / 'out.py') == 2


def test_a_layer_decay_is_never_guessed():
    assert set(LAYER_DECAY) == set(ARCHS)
    small = {'depths': (1, 1, 2), 'embed_dim': 48, 'num_heads': 3}
    for arch in (small, 'huge'):
        with pytest.raises(SwapError, match=r'has no layer decay \(nano, .*large have one\); give layer_decay'):
            plan_swap({'model': {'backbone': {}}}, arch=arch)


def test_a_custom_arch_with_its_layer_decay():
    pytest.importorskip('mmdet')
    register_host_configs()
    cfg = Config.fromfile(resolve_config(DETECTORS['retinanet']))
    arch = {'depths': (1, 1, 2), 'embed_dim': 64, 'num_heads': 2}
    with DefaultScope.overwrite_default_scope('mmdet'):
        options, changes = plan_swap(cfg, arch=arch, layer_decay=0.8)
    assert options['model']['neck']['in_channels'] == (16, 32, 64)
    assert options['optim_wrapper']['paramwise_cfg']['decay_rate'] == 0.8
    assert 'model.backbone' in [change.key for change in changes]


def test_settings_are_written_as_python(tmp_path):
    (tmp_path / 'original.py').write_text('a = dict(z=1)\n')
    options = {'a': {'b': [1, 2], 'c': None}, 'd': [{'e': 'x' * 90}], 'f': 0.1}
    write_config(str(tmp_path / 'original.py'), options, tmp_path / 'sub' / 'out.py', comment='swapped')
    lines = (tmp_path / 'sub' / 'out.py').read_text().splitlines()
    assert lines[:2] == ['# swapped', "_base_ = '../original.py'"]
    assert max(map(len, lines)) < 120
    cfg = Config.fromfile(tmp_path / 'sub' / 'out.py').to_dict()
    assert cfg == {**options, 'a': {'z': 1, **options['a']}}


def test_a_heads_own_widths_stay_though_a_map_had_them():
    """K-Net's update heads take 512 channels, and so did one of ResNet's maps."""
    pytest.importorskip('mmseg')
    register_host_configs()
    cfg = Config.fromfile(resolve_config('mmseg::knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512.py'))
    with DefaultScope.overwrite_default_scope('mmseg'):
        options, _ = plan_swap(cfg, arch='nano')
    head = options['model']['decode_head']
    assert head == {'kernel_generate_head': {'in_channels': [256] * 4}}
    assert options['model']['auxiliary_head']['in_channels'] == 256
