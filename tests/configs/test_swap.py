"""The backbone in configs of the installed mmdet, swapped by the lines that the README shows."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

NANO = {'type': 'mmitpn.FastITPN', 'arch': 'nano'}
CHANNELS = (48, 96, 192)


def pyramid(**kwargs) -> dict:
    return {'type': 'mmitpn.ITPNPyramid', 'in_channels': CHANNELS, **kwargs}


def swap_neck(cfg, **kwargs):
    cfg.model.neck = pyramid(**kwargs)


def keep_neck(cfg, **kwargs):
    """The own neck of mmdet on the backbone's maps, without the pyramid."""
    cfg.model.neck.update(kwargs)


def swap_mask2former(cfg):
    cfg.model.neck = pyramid(num_outs=4)
    cfg.model.panoptic_head.in_channels = [256] * 4
    cfg.model.data_preprocessor.batch_augments = None  # would pad the small image to 1024x1024


CASES = {
    'faster-rcnn': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', lambda cfg: swap_neck(cfg, num_outs=5)),
    'faster-rcnn-fpn': (
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
        lambda cfg: keep_neck(cfg, in_channels=list(CHANNELS)),
    ),
    'retinanet': ('retinanet/retinanet_r50_fpn_1x_coco', lambda cfg: swap_neck(cfg, start_level=1, num_outs=5)),
    'deformable-detr': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
        lambda cfg: swap_neck(cfg, start_level=1, num_outs=4),
    ),
    'deformable-detr-mapper': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
        lambda cfg: keep_neck(cfg, in_channels=list(CHANNELS)),
    ),
    'dino': ('dino/dino-4scale_r50_8xb2-12e_coco', lambda cfg: swap_neck(cfg, start_level=1, num_outs=4)),
    'mask2former': ('mask2former/mask2former_r50_8xb2-lsj-50e_coco', swap_mask2former),
}


def sample(model, with_masks: bool):
    """One random image with two boxes."""
    from mmdet.testing import demo_mm_inputs

    data = demo_mm_inputs(
        1, [[3, 130, 162]], num_items=[2], num_classes=5, with_mask=with_masks, with_semantic=with_masks
    )
    return model.data_preprocessor(data, True)


@pytest.mark.parametrize('case', CASES)
def test_trains_and_predicts(case):
    pytest.importorskip('mmdet')
    path, swap = CASES[case]
    cfg = get_config(f'mmdet::{path}.py')
    init_default_scope('mmdet')
    cfg.model.backbone = copy.deepcopy(NANO)
    swap(cfg)
    from mmdet.registry import MODELS

    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 20
        cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 1
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    data = sample(model, with_masks='mask2former' in case)
    losses = model.loss(data['inputs'], data['data_samples'])
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert model.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        results = model.predict(data['inputs'], data['data_samples'])
    assert len(results) == 1


def test_the_lines_in_the_readme(tmp_path):
    pytest.importorskip('mmdet')
    from mmdet.registry import MODELS

    readme = (Path(__file__).parents[2] / 'README.md').read_text()
    section = readme.partition('## Swap a backbone')[2]
    swap, decay = re.findall(r'```python\n(.*?)```', section, re.DOTALL)[:2]
    assert 'mmitpn://fast-itpn-b' in swap
    (tmp_path / 'swapped.py').write_text((swap + decay).replace('mmitpn://', 'no_download/'))
    cfg = Config.fromfile(tmp_path / 'swapped.py')
    init_default_scope('mmdet')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'FastITPN'
    assert model.neck.strides == (4, 8, 16, 32, 64)
    assert model.backbone.init_cfg == model.neck.init_cfg == cfg.weights
    assert (cfg.optim_wrapper.optimizer.type, cfg.optim_wrapper.paramwise_cfg) == ('AdamW', {'decay_rate': 0.9})
