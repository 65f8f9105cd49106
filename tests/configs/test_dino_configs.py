from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

ROOT = Path(__file__).parents[2]
DINO = sorted((ROOT / 'configs/dino').glob('*.py'))


def name(path: Path) -> str:
    return path.stem


def test_every_size_has_its_configs():
    wanted = {f'dino-{scales}scale_fast-itpn-{size}_8xb2-12e_coco' for scales in (4, 5) for size in 'tsbl'}
    assert {path.stem for path in DINO} >= wanted


@pytest.mark.parametrize('path', DINO, ids=name)
def test_channels_and_levels_fit(path):
    from mmitpn.models.backbones import resolve_arch

    model = Config.fromfile(path).model
    assert tuple(model.neck.in_channels) == resolve_arch(model.backbone.arch).channels
    levels = model.num_feature_levels
    assert levels == int(path.stem.removeprefix('dino-')[0]) == model.neck.num_outs
    assert model.encoder.layer_cfg.self_attn_cfg.num_levels == levels
    assert model.decoder.layer_cfg.cross_attn_cfg.num_levels == levels


@pytest.mark.slow
@pytest.mark.parametrize('path', [path for path in DINO if not path.stem.endswith('-fsdp')], ids=name)
def test_trains_and_tests_one_iteration_on_photographs(path, photos, tmp_path):
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = path.stem
    small = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
    small.append({'type': 'Resize', 'scale': (192, 128), 'keep_ratio': True})
    small.append({'type': 'PackDetInputs'})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size, loader.num_workers, loader.persistent_workers = 1, 0, False
        loader.dataset.update(data_root=str(photos), indices=1, pipeline=small)
    cfg.val_evaluator.ann_file = str(photos / 'annotations' / 'instances_val2017.json')
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = -1  # several GB for the large ones
    cfg.default_hooks.checkpoint.save_last = False
    cfg.default_scope = 'mmdet'
    runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    finally:
        DefaultScope._instance_dict.clear()
    assert runner.iter == 1
    history = runner.message_hub.log_scalars
    assert history['train/loss'].current() > 0
    assert 'val/coco/bbox_mAP' in history
