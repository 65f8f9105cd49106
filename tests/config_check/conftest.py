"""A generated dataset, a COCO dataset to spoil and a config, which the tests of this folder share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from PIL import Image

from mmitpn.datasets import generate_shapes


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory) -> Path:
    """A generated dataset of a few images. Read only."""
    return generate_shapes(tmp_path_factory.mktemp('shapes'), 24, 9, seed=3, size=(96, 128))


@pytest.fixture
def tiny_coco(tmp_path) -> tuple[Path, Path, dict[str, Any]]:
    """A COCO dataset of two images and two categories to spoil: annotation file, image folder, content."""
    images = tmp_path / 'train2017'
    images.mkdir()
    for name in ('a.jpg', 'b.jpg'):
        Image.new('RGB', (64, 48)).save(images / name)
    content = {
        'images': [
            {'id': 1, 'file_name': 'a.jpg', 'width': 64, 'height': 48},
            {'id': 2, 'file_name': 'b.jpg', 'width': 64, 'height': 48},
        ],
        'annotations': [
            {'id': 1, 'image_id': 1, 'category_id': 10, 'bbox': [4, 4, 20, 30], 'area': 600, 'iscrowd': 0},
            {'id': 2, 'image_id': 1, 'category_id': 20, 'bbox': [0, 0, 64, 48], 'area': 3072, 'iscrowd': 0},
        ],
        'categories': [{'id': 10, 'name': 'cat'}, {'id': 20, 'name': 'dog'}],
    }
    path = tmp_path / 'annotations' / 'instances_train2017.json'
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path, images, content


@pytest.fixture
def cfg(tiny_coco) -> Config:
    """A detector's config on two categories, with everything right."""
    path, _, _ = tiny_coco
    dataset = {
        'type': 'CocoDataset',
        'data_root': str(path.parents[1]),
        'ann_file': 'annotations/instances_train2017.json',
        'data_prefix': {'img': 'train2017/'},
        'metainfo': {'classes': ('cat', 'dog')},
        'pipeline': [],
    }
    return Config(
        {
            'default_scope': 'mmdet',
            'model': {
                'type': 'mmitpn.DINO',
                'backbone': {'type': 'mmitpn.FastITPN', 'arch': 'nano'},
                'neck': {'type': 'mmitpn.ITPNPyramid', 'in_channels': (48, 96, 192), 'out_channels': 64, 'num_outs': 4},
                'bbox_head': {'type': 'DINOHead', 'num_classes': 2},
            },
            'train_dataloader': {'dataset': dataset},
            'val_dataloader': {'dataset': dataset},
            'val_evaluator': {'type': 'CocoMetric', 'ann_file': str(path)},
        }
    )
