"""Models of mmdet, mmseg, mmpretrain and this project from their configs, with random inputs to run them on.

mmdet's ``demo_mm_inputs`` for the models of all frameworks: a random batch with the ground truth that each one's loss
needs, so that any config can be measured or tried without a dataset.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmitpn.config_types import is_type


@contextmanager
def quiet_logger() -> Iterator[None]:
    """Keep the frameworks' messages about every single parameter out of the log."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def set_training_progress(*, max_epochs: int = 1, max_iters: int = 1) -> None:
    """Set the progress of training in mmengine's ``MessageHub``, where some heads read it, to the first iteration.

    Args:
        max_epochs: Epochs of the training run.
        max_iters: Iterations of the training run.
    """
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    hub.update_info_dict({'epoch': 0, 'iter': 0, 'max_epochs': max_epochs, 'max_iters': max_iters})


def without_pretrained(node: Any) -> Any:
    """A copy of a model config that loads no checkpoint.

    Args:
        node: The config of a model, or a part of it.
    """
    if isinstance(node, Mapping):
        return {
            key: without_pretrained(value)
            for key, value in node.items()
            if not (key == 'init_cfg' and isinstance(value, Mapping) and is_type(value, 'Pretrained', 'PretrainedInit'))
            and not (key == 'pretrained' and isinstance(value, str))
        }
    if isinstance(node, list | tuple):
        return type(node)(without_pretrained(item) for item in node)
    return node


def build_from_config(config: str | Path, *, overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the model of a config with random weights.

    Args:
        config: A config file of mmdet, mmseg, mmpretrain or this project.
        overrides: Dotted key -> value, as ``--cfg-options``.

    Returns:
        The model on the CPU, in training mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the config has no model.
    """
    from mmengine.config import Config, ConfigDict
    from mmengine.registry import MODELS, init_default_scope

    if not Path(config).is_file():
        raise FileNotFoundError(f'no config file at {config}; give the path of a .py config')
    cfg = Config.fromfile(str(config))
    if overrides:
        cfg.merge_from_dict(dict(overrides))
    if 'model' not in cfg:
        raise ValueError(f'{config} has no `model`; its top-level names are {sorted(cfg.keys())}')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    # The frameworks read their settings as attributes, which plain dicts do not have.
    model = MODELS.build(ConfigDict(without_pretrained(cfg.model)))
    with quiet_logger():
        model.init_weights()
    return model


def model_kind(model: nn.Module) -> str:
    """Which framework's interface a model has.

    Args:
        model: A model of :func:`build_from_config`.

    Returns:
        ``'detector'``, ``'segmentor'``, ``'classifier'``, or ``'pretraining'`` for this project's own.

    Raises:
        TypeError: If it has none of them.
    """
    # A framework that was never imported cannot have built the model.
    if 'mmdet' in sys.modules:
        from mmdet.models import BaseDetector

        if isinstance(model, BaseDetector):
            return 'detector'
    if 'mmseg' in sys.modules:
        from mmseg.models import BaseSegmentor

        if isinstance(model, BaseSegmentor):
            return 'segmentor'
    if 'mmpretrain' in sys.modules:
        from mmpretrain.models import BaseClassifier

        if isinstance(model, BaseClassifier):
            return 'classifier'
    if 'mmitpn.models.selfsup' in sys.modules:
        from mmitpn.models.selfsup import ITPNPretrain

        if isinstance(model, ITPNPretrain):
            return 'pretraining'
    raise TypeError(
        f'{type(model).__name__} is not a detector of mmdet, segmentor of mmseg, classifier of mmpretrain or'
        ' ITPNPretrain'
    )


def make_samples(
    model: nn.Module, size: tuple[int, int], *, batch: int, objects: int, device: torch.device | str
) -> list:
    """Random ground truth of a batch, as the loss and the prediction of the model's framework need it.

    Args:
        model: A model of :func:`build_from_config`.
        size: Height and width in pixels.
        batch: Number of images.
        objects: Number of objects per image, for detectors; all of class 0.
        device: Where the ground truth is put.

    Returns:
        One data sample per image.
    """
    kind = model_kind(model)
    if kind == 'detector':
        return [_detection_sample(model, size, objects, device) for _ in range(batch)]
    if kind == 'segmentor':
        return [_segmentation_sample(size, device) for _ in range(batch)]
    if kind == 'pretraining':
        return [_pretraining_sample(model, size) for _ in range(batch)]
    return [_classification_sample(size, device) for _ in range(batch)]


def _meta(size: tuple[int, int]) -> dict[str, Any]:
    return {
        'img_id': 0,
        'img_path': '',
        'ori_shape': size,
        'img_shape': size,
        'pad_shape': size,
        'batch_input_shape': size,
        'scale_factor': (1.0, 1.0),
        'flip': False,
        'flip_direction': None,
    }


def _boxes(size: tuple[int, int], number: int) -> Tensor:
    """``(number, 4)`` random boxes (x1, y1, x2, y2) in pixels, with sides of at least 2 pixels."""
    height, width = size
    start = torch.rand(number, 2) * 0.6
    extent = 0.1 + torch.rand(number, 2) * 0.3
    scale = torch.tensor([width, height], dtype=torch.float32)
    return torch.cat((start * scale, (start + extent) * scale + 2), dim=1)


def _detection_sample(model: nn.Module, size: tuple[int, int], objects: int, device: torch.device | str) -> Any:
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    boxes = _boxes(size, objects)
    instances = InstanceData(bboxes=boxes.to(device), labels=torch.zeros(objects, dtype=torch.long, device=device))
    names = {type(module).__name__ for module in model.modules()}
    masks = np.zeros((objects, *size), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    instances.masks = BitmapMasks(masks, *size)
    sample = DetDataSample(metainfo=_meta(size), gt_instances=instances)
    if not getattr(model, 'with_rpn', True):  # Fast R-CNN reads its proposals from a file
        sample.proposals = InstanceData(bboxes=_boxes(size, 50).to(device), scores=torch.rand(50, device=device))
    if any('Semantic' in name or 'PanopticFPN' in name for name in names) or getattr(model, 'num_stuff_classes', 0):
        sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, *size, dtype=torch.long, device=device))
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4, device=device), labels=torch.zeros(0, dtype=torch.long, device=device)
    )
    return sample


def _segmentation_sample(size: tuple[int, int], device: torch.device | str) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = PixelData(data=torch.zeros(1, *size, dtype=torch.long, device=device))
    return SegDataSample(metainfo=_meta(size), gt_sem_seg=labels)


def _classification_sample(size: tuple[int, int], device: torch.device | str) -> Any:
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=_meta(size)).set_gt_label(torch.zeros(1, dtype=torch.long, device=device))


def _pretraining_sample(model: nn.Module, size: tuple[int, int]) -> Any:
    from mmpretrain.structures import DataSample

    from mmitpn.models.selfsup.masking import random_masks

    sample = DataSample(metainfo=_meta(size))
    sample.mask = random_masks(1, (size[0] // 16, size[1] // 16), model.mask_ratio, torch.device('cpu'))[0].numpy()
    return sample


def inference_call(model: nn.Module, inputs: Tensor, samples: list, *, predict: bool = False) -> Callable[[], Any]:
    """One inference of a model as its framework runs it, from the normalized images on.

    Detectors predict, post-processing included. Segmentors and classifiers stop at their logits, because a sliding
    window would run over the image many times, unless ``predict`` asks for it.

    Args:
        model: A model of :func:`build_from_config`.
        inputs: ``(B, 3, H, W)``.
        samples: One data sample per image.
        predict: Segmentors and classifiers predict too, with the test_cfg of the model.

    Returns:
        A function without arguments.
    """
    mode = 'predict' if predict or model_kind(model) == 'detector' else 'tensor'
    return lambda: model(inputs, samples, mode=mode)


def loss_call(model: nn.Module, inputs: Tensor, samples: list) -> Callable[[], Tensor]:
    """The sum of a model's losses, as a function without arguments.

    Args:
        model: A model of :func:`build_from_config`, in training mode.
        inputs: ``(B, 3, H, W)``.
        samples: One data sample per image.
    """
    return lambda: model.parse_losses(model(inputs, samples, mode='loss'))[0]
