from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / 'configs/mask_dino').glob('*.py') if not path.stem.endswith('-fsdp'))
QUICKSTART = sorted((ROOT / 'configs/quickstart').glob('mask-dino_*.py'))


def name(path: Path) -> str:
    return path.stem


def test_every_size_and_task_has_its_config():
    tasks = ('12e_coco-instance', '50e_coco-instance', '50e_coco-panoptic', '160k_ade20k-512x512')
    wanted = {f'mask-dino_fast-itpn-{size}_8xb2-{task}' for size in 'tsbl' for task in tasks}
    wanted |= {f'mask-dino_r50_8xb2-{task}' for task in tasks[1:]}
    assert {path.stem for path in CONFIGS} == wanted


@pytest.mark.parametrize('path', [*CONFIGS, *QUICKSTART], ids=name)
def test_widths_and_classes_fit(path):
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


def run_once(cfg, path, folder):
    cfg.work_dir, cfg.experiment_name = str(folder), path.stem
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.model.backbone.init_cfg = None
    cfg.param_scheduler = []
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = -1  # several GB for the large ones
    cfg.default_hooks.checkpoint.save_last = False
    runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    finally:
        DefaultScope._instance_dict.clear()
    assert runner.iter == 1
    return runner.message_hub.log_scalars


# The instance configs of 12 and of 50 epochs have the same networks and data: one of each pair is enough.
NETWORKS = [
    path for path in CONFIGS if 'coco' in path.stem and not ('itpn' in path.stem and '50e_coco-inst' in path.stem)
]


@pytest.mark.slow
@pytest.mark.parametrize('path', NETWORKS, ids=name)
def test_trains_and_tests_one_iteration_on_photographs(path, photos, tmp_path):
    cfg = Config.fromfile(path)
    panoptic = 'panoptic' in path.stem
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size, loader.num_workers, loader.persistent_workers = 1, 0, False
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
    history = run_once(cfg, path, tmp_path)
    assert history['train/loss'].current() > 0
    assert ('val/coco_panoptic/PQ' if panoptic else 'val/coco/segm_mAP') in history


@pytest.mark.slow
@pytest.mark.parametrize('path', [path for path in CONFIGS if 'ade20k' in path.stem], ids=name)
def test_trains_and_prints_miou_on_photographs(path, photos, tmp_path):
    cfg = Config.fromfile(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size, loader.num_workers, loader.persistent_workers = 1, 0, False
        for step in loader.dataset.pipeline:
            if step.type in ('RandomResize', 'Resize'):
                step.scale = (512, 128)
            if step.type == 'RandomCrop':
                step.crop_size = (128, 128)
        loader.dataset.update(data_root=str(photos.parent / 'ade/ADEChallengeData2016'), indices=1)
    cfg.model.data_preprocessor.size = (128, 128)
    history = run_once(cfg, path, tmp_path)
    assert history['train/decode.loss_cls'].current() > 0
    assert 'val/mIoU' in history
