from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

pytest.importorskip('mmpretrain')

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs/classification').glob('*.py'))
TRAINED = ('fast-itpn-t_16xb64-100e_in1k-224', 'fast-itpn-t_16xb64-100e_in1k-384')  # the second by --thorough


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize('path', CONFIGS, ids=name)
def test_sizes_and_channels_fit(path):
    cfg = Config.fromfile(path)
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    size = int(path.stem.rsplit('-', 1)[1])
    assert cfg.model.backbone.img_size == size
    assert model.head.fc.in_features == model.backbone.out_channels[-1]
    scales = [step.scale for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomResizedCrop']
    crops = [step.crop_size for step in cfg.val_dataloader.dataset.pipeline if step.type == 'CenterCrop']
    assert set(scales + crops) == {size}
    epochs = int(path.stem.split('_')[1].split('-')[1].removesuffix('e'))
    assert cfg.train_cfg.max_epochs == epochs == cfg.param_scheduler[-1].end


@pytest.fixture
def folders(tmp_path):
    """An ImageNet folder of three classes with two images each, of odd sizes."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for label in range(3):
            folder = tmp_path / 'data' / split / f'n{label}'
            folder.mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 255, (60 + 7 * index, 91, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{index}.JPEG')
    return tmp_path / 'data'


@pytest.mark.slow
@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, marks=() if path.stem == TRAINED[0] else pytest.mark.thorough)
        for path in CONFIGS
        if path.stem in TRAINED
    ],
    ids=name,
)
def test_trains_and_tests_one_iteration(path, folders, tmp_path, run_once):
    cfg = Config.fromfile(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 2
        loader.dataset.update(data_root=str(folders), metainfo={'classes': ('n0', 'n1', 'n2')}, indices=2)
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 3
    cfg.val_evaluator.topk = (1,)
    runner = run_once(cfg, tmp_path)
    loss = runner.message_hub.get_scalar('train/loss').current()
    assert np.isfinite(loss)
    assert runner.message_hub.get_scalar('val/accuracy/top1').current() in (0.0, 50.0, 100.0)  # of two images
