"""What backbone and neck give is what the next part takes."""

from __future__ import annotations

import pytest

from mmitpn.datasets import check_config


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
