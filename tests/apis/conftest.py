"""Small models with random weights and all their weights in a file, for predictions on generated images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmitpn.datasets import generate_shapes

ROOT = Path(__file__).parents[2]
CONFIG = """
_base_ = ['{base}']
model = dict({model})
test_dataloader = dict(dataset=dict(data_root={data!r}))
"""
CLASSIFIER = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmitpn.FastITPN', arch=dict(depths=(1, 2, 3), embed_dim=64, num_heads=1), img_size=64, out_indices=(2,),
        final_norm=False),
    head=dict(type='mmitpn.MeanPoolClsHead', num_classes=3, in_channels=64))
data_preprocessor = dict(num_classes=3, mean=[127.0] * 3, std=[64.0] * 3, to_rgb=True)
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root={data!r}, with_label=False, metainfo=dict(classes=('cat', 'dog', 'fox')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=72, edge='short', backend='pillow', interpolation='bicubic'),
            dict(type='CenterCrop', crop_size=64), dict(type='PackInputs')]))
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict()
"""
# Kind -> framework, config, settings of its model, folder of its data. All segments of the random panoptic model count.
KINDS = {
    'boxes': ('mmdet', 'dino_fast-itpn-nano_shapes', '', 'coco/'),
    'instances': ('mmdet', 'mask-dino_fast-itpn-nano_shapes-instance', '', 'coco/'),
    'panoptic': (
        'mmdet',
        'mask-dino_fast-itpn-nano_shapes-panoptic',
        'test_cfg=dict(object_mask_thr=0.0, iou_thr=0.0)',
        'coco/',
    ),
    'semantic': ('mmseg', 'mask-dino_fast-itpn-nano_shapes-semantic', '', 'ade/ADEChallengeData2016'),
    'upernet': ('mmseg', 'upernet_fast-itpn-nano_shapes', '', 'ade/ADEChallengeData2016'),
    'classifier': ('mmpretrain', None, '', 'coco/val2017'),
}


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    """Generated images of different sizes, in COCO's and ADE20K's layouts: three of them held out."""
    return generate_shapes(tmp_path_factory.mktemp('shapes'), num_train=1, num_val=3, size=(96, 150))


@pytest.fixture(scope='session')
def images(shapes) -> list[Path]:
    """The held-out images."""
    return sorted((shapes / 'coco/val2017').glob('*.jpg'))


@pytest.fixture(scope='session')
def small_model(shapes, tmp_path_factory) -> Callable[[str], SimpleNamespace]:
    """A function from a kind of model to its ``config`` and ``weights`` (paths) and the built ``model``."""
    folder = tmp_path_factory.mktemp('models')

    @cache
    def get(kind: str) -> SimpleNamespace:
        host, base, model, data = KINDS[kind]
        pytest.importorskip(host)
        if kind == 'semantic':
            pytest.importorskip('mmdet')
        config, weights = folder / f'{kind}.py', folder / f'{kind}.pth'
        root = f'{shapes}/{data}'
        path = ROOT / f'configs/quickstart/{base}.py'
        text = CLASSIFIER.format(data=root) if base is None else CONFIG.format(base=path, model=model, data=root)
        config.write_text(text)
        cfg = Config.fromfile(config)
        for part in ('backbone', 'neck'):
            if part in cfg.model:
                cfg.model[part].pop('init_cfg', None)
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(host):
            built = MODELS.build(cfg.model).eval()
        torch.save({'state_dict': built.state_dict(), 'meta': {}}, weights)
        return SimpleNamespace(config=config, weights=weights, model=built, cfg=cfg, scope=host)

    return get
