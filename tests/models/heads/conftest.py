"""A small MaskDINO head and synthetic samples of mmdet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # helper modules, also for processes that tests start

SMALL = {
    'in_channels': (32,) * 4,
    'feat_channels': 32,
    'out_channels': 16,
    'num_queries': 20,
    'pixel_decoder': {'num_layers': 1, 'num_heads': 4, 'feedforward_channels': 32, 'num_levels': 4},
    'decoder': {'num_layers': 2, 'num_heads': 4, 'feedforward_channels': 32},
    'train_cfg': {'num_points': 64},
}


@pytest.fixture
def make_head():
    """Build a small head, always with the same weights."""
    pytest.importorskip('mmdet')
    from mmitpn.models.heads import MaskDINOHead

    def make(cls=MaskDINOHead, **settings):
        torch.manual_seed(1)
        classes = {} if 'num_classes' in settings else {'num_things_classes': 5}
        head = cls(**{**SMALL, **classes, **settings})
        head.init_weights()
        return head

    return make


@pytest.fixture
def make_maps():
    """Random maps of a batch."""

    def make(size=(96, 128), batch=2):
        torch.manual_seed(2)
        return [torch.randn(batch, 32, -(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]

    return make


@pytest.fixture
def make_sample():
    """An image with N things, and stuff of the given labels in stripes."""
    pytest.importorskip('mmdet')
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    def make(things, stuff=None, *, classes=5, shape=(90, 110), padded=(96, 128)):
        rng = np.random.default_rng(things)
        sample = DetDataSample(
            metainfo={
                'img_shape': shape,
                'batch_input_shape': padded,
                'ori_shape': (shape[0] // 2, shape[1] // 2),
                'scale_factor': (2.0, 2.0),
            }
        )
        corners = rng.uniform((0, 0), (60, 40), (things, 2))
        boxes = np.concatenate((corners, corners + rng.uniform(8, 40, (things, 2))), 1).round()
        masks = np.zeros((things, *shape), np.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
            mask[y0:y1, x0:x1] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4),
            labels=torch.as_tensor(rng.integers(0, classes, things)),
            masks=BitmapMasks(masks, *shape),
        )
        if stuff is not None:
            labels = torch.full((1, *shape), 255)
            for number, label in enumerate(stuff):
                labels[:, 20 * number : 20 * number + 20] = label
            sample.gt_sem_seg = PixelData(sem_seg=labels)
        return sample

    return make
