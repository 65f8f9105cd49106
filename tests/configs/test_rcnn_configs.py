from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner

pytest.importorskip('mmdet')

ROOT = Path(__file__).parents[2]
RCNN = sorted(
    path for folder in ('mask_rcnn', 'cascade_mask_rcnn') for path in (ROOT / 'configs' / folder).glob('*.py')
)
TRAINED = ('mask-rcnn_itpn-b-clip_8xb8-12e_coco', 'cascade-mask-rcnn_fast-itpn-b_8xb8-36e_coco')


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize('path', RCNN, ids=name)
def test_backbone_neck_and_schedule_fit(path):
    cfg = Config.fromfile(path)
    init_default_scope('mmdet')
    with torch.device('meta'):
        backbone, neck = MODELS.build(cfg.model.backbone), MODELS.build(cfg.model.neck)
    assert neck.in_channels == backbone.out_channels
    assert neck.strides == tuple(cfg.model.rpn_head.anchor_generator.strides)
    epochs = 36 if '36e' in path.stem else 12
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[-1].milestones == ([27, 33] if epochs == 36 else [9, 11])
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size


@pytest.mark.slow
@pytest.mark.parametrize('path', [path for path in RCNN if path.stem in TRAINED], ids=name)
def test_trains_and_tests_one_iteration_on_photographs(path, photos, tmp_path):
    cfg = Config.fromfile(path)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), path.stem
    load = {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}
    small = [{'type': 'LoadImageFromFile'}, load, {'type': 'Resize', 'scale': (192, 128), 'keep_ratio': True}]
    small.append({'type': 'PackDetInputs'})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
        loader.dataset.update(data_root=str(photos), indices=2, pipeline=small)
    cfg.train_dataloader.batch_size = 2
    cfg.val_evaluator.ann_file = str(photos / 'annotations' / 'instances_val2017.json')
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.train_cfg.max_epochs = 1
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=10)  # so that there is something to evaluate, not all
    cfg.model.test_cfg.rpn.max_per_img = cfg.model.train_cfg.rpn_proposal.max_per_img = 50
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    finally:
        DefaultScope._instance_dict.clear()
    history = runner.message_hub.log_scalars
    assert history['train/loss_mask' if 'cascade' not in path.stem else 'train/s0.loss_mask'].current() > 0
    assert 'val/coco/segm_mAP' in history
