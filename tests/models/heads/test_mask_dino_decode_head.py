"""MaskDINO as a decode head of mmseg."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder
from mmseg.structures import SegDataSample

from mmitpn.models.heads import MaskDINOHead

SMALL = {
    'in_channels': (32,) * 4,
    'feat_channels': 32,
    'out_channels': 16,
    'num_queries': 20,
    'pixel_decoder': {'num_layers': 1, 'num_heads': 4, 'feedforward_channels': 32, 'num_levels': 3},
    'decoder': {'num_layers': 2, 'num_heads': 4, 'feedforward_channels': 32},
    'train_cfg': {'num_points': 64},
}


def segmentor(test_cfg, **settings):
    torch.manual_seed(1)
    model = EncoderDecoder(
        backbone={'type': 'mmitpn.FastITPN', 'arch': 'nano'},
        neck={'type': 'mmitpn.ITPNPyramid', 'in_channels': (48, 96, 192), 'out_channels': 32, 'num_outs': 4},
        decode_head={'type': 'mmitpn.MaskDINODecodeHead', 'num_classes': 4, **SMALL, **settings},
        train_cfg={},
        test_cfg=ConfigDict(test_cfg),
    )
    torch.manual_seed(2)
    for weight in model.decode_head.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def sample(labels):
    found = SegDataSample(metainfo={'img_shape': labels.shape, 'ori_shape': labels.shape, 'pad_shape': labels.shape})
    found.gt_sem_seg = PixelData(data=labels[None])
    return found


@pytest.mark.parametrize(
    'settings',
    [{}, {'two_stage': True, 'loss_cls': {'type': 'mmdet.FocalLoss', 'use_sigmoid': True, 'loss_weight': 4.0}}],
    ids=['softmax', 'focal'],
)
def test_trains_on_any_label_map(settings):
    model = segmentor({'mode': 'whole'}, **settings).train()
    some = torch.randint(0, 4, (64, 64))
    ignored, one = torch.full((64, 64), 255), torch.full((64, 64), 2)
    for pair in ((some, one), (ignored, one), (ignored, ignored)):
        model.zero_grad()
        losses = model.loss(torch.randn(2, 3, 64, 64), [sample(labels) for labels in pair])
        assert all(value.isfinite() for value in losses.values())
        sum(losses.values()).backward()
        assert [name for name, weight in model.decode_head.named_parameters() if weight.grad is None] == []


def test_state_dict_is_that_of_the_mmdet_head():
    model = segmentor({'mode': 'whole'}, two_stage=True)
    loss = {'type': 'mmdet.CrossEntropyLoss', 'use_sigmoid': False}
    head = MaskDINOHead(num_things_classes=4, box_start='no', loss_cls=loss, **SMALL)
    shapes, expected = (
        [(name, value.shape) for name, value in one.state_dict().items()] for one in (model.decode_head, head)
    )
    assert shapes == expected
    assert [name for name, _ in model.decode_head.named_parameters()] == [name for name, _ in head.named_parameters()]
    model.decode_head.load_state_dict(head.state_dict())


def test_a_copy_runs_with_its_own_weights():
    model = segmentor({'mode': 'whole'}).eval()
    copy = deepcopy(model)
    for weight in copy.decode_head.parameters():
        weight.data.zero_()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs, copied = model(image, mode='tensor'), copy(image, mode='tensor')
    assert (copied.logits == 0).all()
    assert (outputs.logits != 0).any()


def test_targets_of_a_label_map():
    head = segmentor({'mode': 'whole'}).decode_head
    labels = torch.full((8, 16), 255)
    labels[2:4, 4:8] = 3
    labels[:, 12:] = 0
    targets = head.targets_of([labels])
    assert targets.objects.labels.tolist() == [[0, 3]]
    assert torch.equal(targets.masks[1], labels == 3)
    boxes = torch.tensor([[[0.875, 0.5, 0.25, 1.0], [0.375, 0.375, 0.25, 0.25]]])
    torch.testing.assert_close(targets.objects.boxes, boxes)


@pytest.mark.parametrize('size', [(64, 64), (61, 70)])
def test_slide_equals_whole_for_an_image_of_the_crop_size(size):
    image = torch.randn(1, 3, *size)
    meta = [{'img_shape': size, 'ori_shape': size, 'pad_shape': size}]
    outs = []
    for test_cfg in ({'mode': 'whole'}, {'mode': 'slide', 'crop_size': size, 'stride': (32, 32)}):
        with torch.no_grad():
            outs.append(segmentor(test_cfg).eval().inference(image, [dict(meta[0])]))
    assert outs[0].shape == (1, 4, *size)
    torch.testing.assert_close(*outs)


def test_slide_is_the_mean_of_the_windows_with_padding_too():
    size = (64, 96)
    image = torch.randn(1, 3, *size)
    model = segmentor({'mode': 'slide', 'crop_size': (64, 64), 'stride': (32, 32)}).eval()
    with torch.no_grad():
        found = model.inference(image, [{'img_shape': (60, 96), 'ori_shape': (60, 96), 'pad_shape': size}])
        meta = [{'img_shape': torch.Size((64, 64))}]
        windows = [model.encode_decode(image[..., left : left + 64], meta) for left in (0, 32)]
    assert found.shape == (1, 4, *size)
    torch.testing.assert_close(found[..., :32], windows[0][..., :32])
    torch.testing.assert_close(found[..., 32:64], (windows[0][..., 32:] + windows[1][..., :32]) / 2)
