"""The parts of a model fit together and fit the data: numbers of classes, masks, channels."""

from __future__ import annotations

import json
import re

import pytest
from mmengine.config import Config

from mmitpn.config_check import check_config


def cascade(*numbers: int, mask: int) -> dict:
    return {
        'type': 'CascadeRCNN',
        'rpn_head': {'type': 'RPNHead', 'num_classes': 1},
        'roi_head': {
            'type': 'CascadeRoIHead',
            'bbox_head': [{'type': 'Shared2FCBBoxHead', 'num_classes': number} for number in numbers],
            'mask_head': {'type': 'FCNMaskHead', 'num_classes': mask},
            'semantic_head': {'type': 'FusedSemanticHead', 'num_classes': 183},
        },
    }


def test_every_stage_of_a_cascade_counts(cfg):
    cfg.model = cascade(2, 2, 2, mask=2)
    assert check_config(cfg)
    cfg.model = cascade(2, 80, 2, mask=80)
    with pytest.raises(
        ValueError,
        match=r'roi_head.bbox_head\[1\].num_classes = 80; model.roi_head.mask_head.num_classes = 80; set every one',
    ):
        check_config(cfg)


def mask2former(things: int, stuff: int, weights: int) -> dict:
    numbers = {'num_things_classes': things, 'num_stuff_classes': stuff}
    loss = {'type': 'CrossEntropyLoss', 'class_weight': [1.0] * weights + [0.1]}
    return {
        'type': 'Mask2Former',
        'panoptic_head': {'type': 'Mask2FormerHead', **numbers, 'loss_cls': loss},
        'panoptic_fusion_head': {'type': 'MaskFormerFusionHead', **numbers},
    }


def test_things_and_stuff_count_together(cfg):
    cfg.model = mask2former(2, 0, 2)
    assert check_config(cfg)
    cfg.model = mask2former(80, 53, 133)
    with pytest.raises(ValueError, match=r'panoptic_head has num_things_classes = 80 and num_stuff_classes = 53'):
        check_config(cfg)
    cfg.model = mask2former(2, 0, 80)
    with pytest.raises(ValueError, match=r'class_weight has 81 numbers, but the head has 2 classes: it needs 3'):
        check_config(cfg)


def test_box_heads_of_a_panoptic_model_know_the_things_only(cfg):
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.metainfo = {
            'classes': ('cat', 'dog'),
            'thing_classes': ('cat',),
            'stuff_classes': ('dog',),
        }
    cfg.model = {**cascade(1, mask=1), **mask2former(1, 1, 2)}
    assert check_config(cfg)
    cfg.model = {**cascade(1, mask=1), **mask2former(2, 0, 2)}
    with pytest.raises(ValueError, match='1 thing and 1 stuff classes'):
        check_config(cfg)


def test_masks_and_stuff_that_a_head_learns_from_are_loaded(cfg, tiny_coco):
    path, _, content = tiny_coco
    for entry in content['annotations']:
        x, y, width, height = entry['bbox']
        entry['segmentation'] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    path.write_text(json.dumps(content))
    head = {'type': 'mmitpn.MaskDINOHead', 'num_things_classes': 2, 'num_stuff_classes': 0, 'box_start': 'mask2box'}
    cfg.model = {'type': 'mmitpn.MaskDINO', 'panoptic_head': head}
    assert check_config(cfg)  # a pipeline that does not tell
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
    cfg.train_dataloader.dataset.pipeline = pipeline
    with pytest.raises(ValueError, match=r"loads no masks, .*box_start='mask2box' .* set with_mask=True"):
        check_config(cfg)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True
    assert check_config(cfg)
    cfg.model.panoptic_head.update(num_things_classes=1, num_stuff_classes=1)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.metainfo.update(thing_classes=('cat',), stuff_classes=('dog',))
    with pytest.raises(ValueError, match=r'loads no map of stuff, but .* has num_stuff_classes=1'):
        check_config(cfg)
    cfg.train_dataloader.dataset.pipeline[1] = {'type': 'mmitpn.LoadPanopticAnnotations'}
    assert check_config(cfg)


def test_heads_differ_without_a_dataset():
    segmentor = {
        'decode_head': {'type': 'UPerHead', 'num_classes': 150},
        'auxiliary_head': {'type': 'FCNHead', 'num_classes': 19},
    }
    with pytest.raises(ValueError, match=r'decode_head.num_classes = 150; model.auxiliary_head.num_classes = 19'):
        check_config(Config({'model': segmentor}))
    segmentor['auxiliary_head']['num_classes'] = 150
    assert check_config(Config({'model': segmentor})) == []


def test_an_override_of_a_head_that_the_base_config_lacks(cfg):
    head = {'type': 'mmitpn.MaskDINOHead', 'num_things_classes': 2, 'num_stuff_classes': 0}
    cfg.model = {'type': 'mmitpn.MaskDINO', 'panoptic_head': head, 'panoptic_fusion_head': {'num_things_classes': 2}}
    with pytest.raises(
        ValueError, match=r"model.panoptic_fusion_head sets 'num_things_classes' but has no type"
    ) as raised:
        check_config(cfg)
    assert 'the numbers of this model are model.panoptic_head.num_things_classes, ' in str(raised.value)
    # Both ways out of it pass.
    (kind,) = re.findall(r"add type='(.*?)'", str(raised.value))
    cfg.model.panoptic_fusion_head.type = kind
    assert check_config(cfg)
    cfg.model.pop('panoptic_fusion_head')
    assert check_config(cfg)
    cfg.model = {**cascade(2, mask=2), 'bbox_head': {'num_classes': 2}}
    advice = r'model.bbox_head .* no type.*the numbers of this model are model.roi_head.bbox_head\[0\].num_classes, '
    with pytest.raises(ValueError, match=advice):
        check_config(cfg)


# --- channels ---


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'neck.in_channels': (96, 192, 384)},
            r'neck.in_channels is \(96, 192, 384\), but the backbone gives .*\(48, 96, 192\)',
        ),
        ({'backbone.arch': 'base'}, r'the backbone gives maps of \(128, 256, 512\) channels: set in_channels='),
        ({'backbone.out_indices': (1, 2)}, r'the backbone gives maps of \(96, 192\) channels'),
        ({'backbone.out_indices': (0, 3)}, r'out_indices is \(0, 3\); it takes 0, 1 and 2'),
        ({'backbone.arch': 'huge'}, r"unknown arch 'huge'"),
        (
            {'rpn_head': {'type': 'RPNHead', 'in_channels': 256}},
            r'rpn_head.in_channels is 256, but model.neck gives .* 64',
        ),
        (
            {'roi_head': {'bbox_roi_extractor': {'type': 'SingleRoIExtractor', 'out_channels': 256}}},
            r'bbox_roi_extractor.out_channels is 256, but model.neck gives',
        ),
        (
            {'panoptic_head': {'in_channels': [256, 256, 256, 256]}},
            r'panoptic_head.in_channels is \(256, 256, 256, 256\), but model.neck gives maps of \(64, 64, 64, 64\)',
        ),
        ({'decode_head': {'in_channels': [64] * 5, 'in_index': [0, 1, 2, 3, 4]}}, r'but model.neck gives 4 maps'),
        ({'auxiliary_head': {'in_channels': 64, 'in_index': 4}}, r'in_index 4 is out of range'),
        (
            {'backbone': {'_delete_': True, 'type': 'mmitpn.FastITPN'}},
            r'gives maps of \(128, 256, 512\)',
        ),  # its default
        ({'backbone': {'_delete_': True, 'type': 'mmitpn.ITPN', 'arch': 'large'}}, r'gives maps of \(192, 384, 768\)'),
        (
            {'neck.concat_backbone': True, 'decode_head': {'in_channels': [64] * 4, 'in_index': [0, 1, 2, 3]}},
            r'set it to \(112, 160, 256, 256\)',
        ),
        (
            {'neck.concat_backbone': True, 'neck.start_level': 1, 'auxiliary_head': {'in_channels': 64, 'in_index': 0}},
            r'set it to 160',
        ),
        (
            {'neck.concat_backbone': True, 'neck.start_level': 3, 'auxiliary_head': {'in_channels': 64, 'in_index': 0}},
            r'set it to 256',
        ),
    ],
)
def test_channels_that_do_not_fit(cfg, options, message):
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_channels_without_a_neck(cfg):
    del cfg.model['neck']
    cfg.model.decode_head = {'in_channels': [48, 96, 192], 'in_index': [0, 1, 2]}
    assert check_config(cfg)
    cfg.model.decode_head.in_channels = [48, 96, 384]
    with pytest.raises(ValueError, match=r'decode_head.in_channels is \(48, 96, 384\), but the backbone gives maps of'):
        check_config(cfg)
