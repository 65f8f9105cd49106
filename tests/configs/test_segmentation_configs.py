"""UperNet and MaskDINO on ADE20K: sizes, channels, sliding windows, one iteration on photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

pytest.importorskip('mmseg')

ROOT = Path(__file__).parents[2]
UPERNET = sorted((ROOT / 'configs/upernet').glob('*.py'))
MASK_DINO_ADE20K = sorted((ROOT / 'configs/mask_dino').glob('*ade20k*.py'))
SHAPES = ROOT / 'configs/quickstart/upernet_fast-itpn-nano_shapes.py'


# One of each kind of network is run by default; the other sizes by --thorough.
RUN = ('upernet_fast-itpn-t_8xb2-160k_ade20k-512x512', 'mask-dino_fast-itpn-t_8xb2-160k_ade20k-512x512')


def name(path: Path) -> str:
    return path.stem


def trained(paths: list[Path]) -> list:
    """Parameters of a test that trains: those that are not in ``RUN`` are marked."""
    return [pytest.param(path, marks=() if path.stem in RUN else pytest.mark.thorough) for path in paths]


def build(cfg: Config) -> torch.nn.Module:
    init_default_scope('mmseg')
    return MODELS.build(cfg.model)


def test_upernet_has_every_size():
    sizes = [f'fast-itpn-{size}' for size in 'tsbl'] + [
        f'itpn-{size}-{kind}' for size in 'bl' for kind in ('pixel', 'clip')
    ]
    assert {path.stem for path in UPERNET} >= {f'upernet_{size}_8xb2-160k_ade20k-512x512' for size in sizes}


@pytest.mark.parametrize('path', [*UPERNET, SHAPES], ids=name)
def test_upernet_channels_fit(path):
    cfg = Config.fromfile(path)
    with torch.device('meta'):
        model = build(cfg)
    assert model.neck.in_channels == model.backbone.out_channels
    assert tuple(cfg.model.decode_head.in_channels) == model.neck.level_channels
    assert cfg.model.auxiliary_head.in_channels == model.neck.level_channels[cfg.model.auxiliary_head.in_index]
    assert model.neck.extra_pool == 'max'


def nano(**test_cfg) -> torch.nn.Module:
    cfg = Config.fromfile(SHAPES)
    for part in (cfg.model.backbone, cfg.model.neck):
        part.init_cfg = None
    cfg.model.test_cfg = test_cfg
    return build(cfg).eval()


def metas(height: int, width: int) -> list[dict]:
    return [{'ori_shape': (height, width), 'img_shape': (height, width), 'pad_shape': (height, width)}]


def test_slide_equals_whole_on_an_image_of_the_crop_size():
    model = nano(mode='slide', crop_size=(96, 96), stride=(64, 64))
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.slide_inference(x, metas(96, 96)), model.whole_inference(x, metas(96, 96)))


@pytest.mark.parametrize('size', [(96, 140), (131, 97), (200, 200)])
def test_slide_averages_the_crops(size):
    model = nano(mode='slide', crop_size=(96, 96), stride=(64, 64))
    x = torch.randn(1, 3, *size)
    total, count = torch.zeros(1, 9, *size), torch.zeros(1, 1, *size)
    tops, lefts = ([min(s, side - 96) for s in range(0, side - 96 + 64, 64)] if side > 96 else [0] for side in size)
    lefts = list(lefts)
    with torch.no_grad():
        for top in tops:
            for left in lefts:
                window = (..., slice(top, top + 96), slice(left, left + 96))
                total[window] += model.encode_decode(x[window], metas(96, 96))
                count[window] += 1
        torch.testing.assert_close(model.slide_inference(x, metas(*size)), total / count, atol=1e-4, rtol=1e-4)


def test_an_image_smaller_than_the_crop_is_one_window():
    model = nano(mode='slide', crop_size=(96, 96), stride=(64, 64))
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        torch.testing.assert_close(model.slide_inference(x, metas(50, 70)), model.whole_inference(x, metas(50, 70)))


@pytest.mark.slow
@pytest.mark.parametrize('path', trained([path for path in UPERNET if '-l' not in path.stem]), ids=name)
def test_upernet_trains_and_tests_one_iteration(path, photos, tmp_path, run_once):
    cfg = Config.fromfile(path)
    cfg.model.data_preprocessor.size = (128, 128)
    cfg.model.test_cfg = {'mode': 'slide', 'crop_size': (128, 128), 'stride': (85, 85)}
    for pipeline in (cfg.train_dataloader.dataset.pipeline, cfg.val_dataloader.dataset.pipeline):
        for step in pipeline:
            if step.type in ('RandomResize', 'Resize'):
                step.scale = (512, 128)
            elif step.type == 'RandomCrop':
                step.crop_size = (128, 128)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 2
        loader.dataset.update(data_root=str(photos.parent / 'ade/ADEChallengeData2016'), indices=2)
    cfg.val_dataloader.batch_size = 1
    runner = run_once(cfg, tmp_path)
    history = runner.message_hub.log_scalars
    assert history['train/loss'].current() > 0
    assert 'val/mIoU' in history


@pytest.mark.slow
@pytest.mark.parametrize('path', trained(MASK_DINO_ADE20K), ids=name)
def test_mask_dino_trains_and_tests_one_iteration(path, photos, tmp_path, run_once):
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.batch_size = 1
        for step in loader.dataset.pipeline:
            if step.type in ('RandomResize', 'Resize'):
                step.scale = (512, 128)
            if step.type == 'RandomCrop':
                step.crop_size = (128, 128)
        loader.dataset.update(data_root=str(photos.parent / 'ade/ADEChallengeData2016'), indices=1)
    cfg.model.data_preprocessor.size = (128, 128)
    cfg.model.backbone.init_cfg = None
    cfg.param_scheduler = []
    history = run_once(cfg, tmp_path).message_hub.log_scalars
    assert history['train/decode.loss_cls'].current() > 0
    assert 'val/mIoU' in history
