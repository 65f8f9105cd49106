"""Small detectors and synthetic batches for the tests of DINO, also imported by the processes they start."""

from __future__ import annotations

from pathlib import Path

import mmdet.models  # noqa: F401 (registers mmdet's modules)
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

BASE = Path(__file__).parents[3] / 'configs' / '_base_' / 'models' / 'dino_fast-itpn.py'


def base_config() -> ConfigDict:
    return Config.fromfile(BASE).model


def tiny_config(*, width: int = 32, queries: int = 20, layers: int = 2, classes: int = 3) -> ConfigDict:
    """The project's own base configuration, of three blocks and thin layers."""
    cfg = base_config()
    cfg.num_queries = queries
    cfg.test_cfg.max_per_img = 10
    cfg.backbone.update(arch={'depths': (1, 1, 1), 'embed_dim': 32, 'num_heads': 1}, drop_path_rate=0.0)
    cfg.neck.update(in_channels=(8, 16, 32), out_channels=width)
    for part in (cfg.encoder, cfg.decoder):
        part.num_layers = layers
        for name, settings in part.layer_cfg.items():
            settings.embed_dims = width
            if name == 'ffn_cfg':
                settings.feedforward_channels = 2 * width
    cfg.positional_encoding.num_feats = width // 2
    cfg.bbox_head.update(num_classes=classes, embed_dims=width)
    return cfg


def resnet_config(model_type: str) -> ConfigDict:
    """A ResNet and mmdet's neck under the 256 wide transformer that mmdet 3.3.0 needs."""
    cfg = tiny_config(width=256)
    cfg.backbone = ConfigDict(type='ResNet', depth=18, out_indices=(1, 2, 3), norm_eval=True)
    cfg.neck = ConfigDict(
        type='ChannelMapper',
        in_channels=[128, 256, 512],
        kernel_size=1,
        out_channels=256,
        act_cfg=None,
        norm_cfg={'type': 'GN', 'num_groups': 32},
        num_outs=4,
    )
    cfg.type = model_type
    if model_type == 'DINO':
        cfg.update(with_box_refine=True, as_two_stage=True)
        cfg.encoder.pop('with_cp')
        cfg.decoder.pop('with_cp')
        cfg.decoder.update(post_norm_cfg=None, return_intermediate=True)
    return cfg


def build(cfg: ConfigDict) -> nn.Module:
    logger = MMLogger.get_current_instance()
    level = logger.level
    # mmengine logs several lines for every parameter that it initializes.
    logger.setLevel('ERROR')
    try:
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg)
            model.init_weights()
    finally:
        logger.setLevel(level)
    return model


def batch(
    counts: list[int], *, size: int = 64, shapes: list[tuple[int, int]] | None = None, classes: int = 3
) -> tuple[Tensor, list[DetDataSample]]:
    """Images with ``counts`` objects. ``shapes`` are the sizes without padding. Image i is always the same."""
    images, samples = [], []
    for index, count in enumerate(counts):
        generator = torch.Generator().manual_seed(index)
        images.append(torch.randn(3, size, size, generator=generator))
        corner = torch.rand(count, 2, generator=generator) * size / 2
        side = 4 + torch.rand(count, 2, generator=generator) * (size / 2 - 4)
        sample = DetDataSample(
            gt_instances=InstanceData(
                bboxes=torch.cat([corner, corner + side], dim=1),
                labels=torch.randint(classes, (count,), generator=generator),
            )
        )
        shape = shapes[index] if shapes else (size, size)
        sample.set_metainfo(
            {'img_shape': shape, 'ori_shape': shape, 'batch_input_shape': (size, size), 'scale_factor': (1.0, 1.0)}
        )
        samples.append(sample)
    return torch.stack(images), samples


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(value.sum() for value in losses.values())
