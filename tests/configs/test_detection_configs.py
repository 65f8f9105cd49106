"""DINO, Mask R-CNN, Cascade Mask R-CNN and MaskDINO: sizes, channels, recipes, one iteration on photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

pytest.importorskip('mmdet')

ROOT = Path(__file__).parents[2]
DINO = sorted((ROOT / 'configs/dino').glob('*.py'))
RCNN = sorted(
    path for folder in ('mask_rcnn', 'cascade_mask_rcnn') for path in (ROOT / 'configs' / folder).glob('*.py')
)
RCNN_TRAINED = ('mask-rcnn_itpn-b-clip_8xb8-12e_coco', 'cascade-mask-rcnn_fast-itpn-b_8xb8-36e_coco')
MASK_DINO = sorted(path for path in (ROOT / 'configs/mask_dino').glob('*.py') if not path.stem.endswith('-fsdp'))
QUICKSTART = sorted((ROOT / 'configs/quickstart').glob('mask-dino_*.py'))


# One of each kind of network is run by default; the other sizes by --thorough.
RUN = (
    *('dino-4scale_fast-itpn-t_8xb2-12e_coco', 'dino-5scale_fast-itpn-t_8xb2-12e_coco', RCNN_TRAINED[0]),
    *('mask-dino_fast-itpn-t_8xb2-12e_coco-instance', 'mask-dino_fast-itpn-t_8xb2-50e_coco-panoptic'),
    'mask-dino_r50_8xb2-50e_coco-instance',
)


def name(path: Path) -> str:
    return path.stem


def trained(paths: list[Path]) -> list:
    """Parameters of a test that trains: those that are not in ``RUN`` are marked."""
    return [pytest.param(path, marks=() if path.stem in RUN else pytest.mark.thorough) for path in paths]


def test_dino_has_every_size():
    wanted = {f'dino-{scales}scale_fast-itpn-{size}_8xb2-12e_coco' for scales in (4, 5) for size in 'tsbl'}
    assert {path.stem for path in DINO} >= wanted


@pytest.mark.parametrize('path', DINO, ids=name)
def test_dino_channels_and_levels_fit(path):
    from mmitpn.models.backbones import resolve_arch

    model = Config.fromfile(path).model
    assert tuple(model.neck.in_channels) == resolve_arch(model.backbone.arch).channels
    levels = model.num_feature_levels
    assert levels == int(path.stem.removeprefix('dino-')[0]) == model.neck.num_outs
    assert model.encoder.layer_cfg.self_attn_cfg.num_levels == levels
    assert model.decoder.layer_cfg.cross_attn_cfg.num_levels == levels


@pytest.mark.slow
@pytest.mark.parametrize('path', trained([path for path in DINO if not path.stem.endswith('-fsdp')]), ids=name)
def test_dino_trains_and_tests_one_iteration(path, photos, tmp_path, run_once):
    cfg = Config.fromfile(path)
    small = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
    small.append({'type': 'Resize', 'scale': (192, 128), 'keep_ratio': True})
    small.append({'type': 'PackDetInputs'})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 1
        loader.dataset.update(data_root=str(photos), indices=1, pipeline=small)
    cfg.val_evaluator.ann_file = str(photos / 'annotations' / 'instances_val2017.json')
    runner = run_once(cfg, tmp_path)
    history = runner.message_hub.log_scalars
    assert history['train/loss'].current() > 0
    assert 'val/coco/bbox_mAP' in history


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
@pytest.mark.parametrize('path', trained([path for path in RCNN if path.stem in RCNN_TRAINED]), ids=name)
def test_rcnn_trains_and_tests_one_iteration(path, photos, tmp_path, run_once):
    cfg = Config.fromfile(path)
    load = {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}
    small = [{'type': 'LoadImageFromFile'}, load, {'type': 'Resize', 'scale': (192, 128), 'keep_ratio': True}]
    small.append({'type': 'PackDetInputs'})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(data_root=str(photos), indices=2, pipeline=small)
    cfg.train_dataloader.batch_size = 2
    cfg.val_evaluator.ann_file = str(photos / 'annotations' / 'instances_val2017.json')
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=10)  # so that there is something to evaluate, not all
    cfg.model.test_cfg.rpn.max_per_img = cfg.model.train_cfg.rpn_proposal.max_per_img = 50
    runner = run_once(cfg, tmp_path)
    history = runner.message_hub.log_scalars
    assert history['train/loss_mask' if 'cascade' not in path.stem else 'train/s0.loss_mask'].current() > 0
    assert 'val/coco/segm_mAP' in history


def test_mask_dino_has_every_size_and_task():
    tasks = ('12e_coco-instance', '50e_coco-instance', '50e_coco-panoptic', '160k_ade20k-512x512')
    wanted = {f'mask-dino_fast-itpn-{size}_8xb2-{task}' for size in 'tsbl' for task in tasks}
    wanted |= {f'mask-dino_r50_8xb2-{task}' for task in tasks[1:]}
    assert {path.stem for path in MASK_DINO} == wanted


@pytest.mark.parametrize('path', [*MASK_DINO, *QUICKSTART], ids=name)
def test_mask_dino_widths_and_classes_fit(path):
    pytest.importorskip('mmseg')
    cfg = Config.fromfile(path)
    model = cfg.model
    head = model.get('decode_head') or model.panoptic_head
    if model.get('neck'):
        from mmitpn.models.backbones import resolve_arch

        assert tuple(model.neck.in_channels) == resolve_arch(model.backbone.arch).channels
        assert list(head.in_channels) == [model.neck.out_channels] * model.neck.num_outs
    if 'coco' in path.stem:
        from mmdet.datasets import CocoDataset, CocoPanopticDataset

        panoptic = 'panoptic' in path.stem
        meta = (CocoPanopticDataset if panoptic else CocoDataset).METAINFO
        stuff = len(meta.get('stuff_classes', meta.get('STUFF_CLASSES', ()))) if panoptic else 0
        assert head.num_things_classes + head.num_stuff_classes == len(meta.get('classes', meta.get('CLASSES')))
        assert head.num_stuff_classes == stuff
    init_default_scope(cfg.default_scope)
    try:
        with torch.device('meta'):
            built = MODELS.build(model)
    finally:
        DefaultScope._instance_dict.clear()
    assert type(built).__name__ == model.type.rpartition('.')[2]


# The instance configs of 12 and of 50 epochs have the same networks and data: one of each pair is enough.
NETWORKS = [
    path for path in MASK_DINO if 'coco' in path.stem and not ('itpn' in path.stem and '50e_coco-inst' in path.stem)
]


@pytest.mark.slow
@pytest.mark.parametrize('path', trained(NETWORKS), ids=name)
def test_mask_dino_trains_and_tests_one_iteration(path, photos, tmp_path, run_once):
    cfg = Config.fromfile(path)
    panoptic = 'panoptic' in path.stem
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 1
        pipeline = loader.dataset.pipeline
        for step in pipeline:
            if step.type in ('RandomResize', 'Resize'):
                step.scale = (192, 192)
            if step.type == 'RandomResize':
                step.ratio_range = (0.9, 1.1)
            if step.type == 'RandomCrop':
                step.crop_size = (192, 192)
        loader.dataset.update(data_root=str(photos), indices=1)
    if not panoptic:
        cfg.val_evaluator.ann_file = str(photos / 'annotations' / 'instances_val2017.json')
    cfg.model.panoptic_head.num_queries = 50  # 192 pixels have few places
    cfg.model.backbone.init_cfg = None
    cfg.param_scheduler = []
    history = run_once(cfg, tmp_path).message_hub.log_scalars
    assert history['train/loss'].current() > 0
    assert ('val/coco_panoptic/PQ' if panoptic else 'val/coco/segm_mAP') in history
