"""A model of mmdet, mmseg or mmpretrain for :class:`mmitpn.Predictor`: images in, predictions out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DefaultScope

from mmitpn.apis.model_loading import build_model, find_outputs, find_pipeline, resolve_model
from mmitpn.apis.results import read_sample
from mmitpn.engine.compile import compile_model

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


class FrameworkModel:
    """A model with its weights and its test pipeline. For the arguments see :class:`mmitpn.Predictor`.

    Attributes:
        model: The model.
        cfg: Its config.
        weights: Path or address of its weights.
        device: The torch device.
        names: Names of the classes.
        outputs: What the model gives.
        things: Number of thing classes of a panoptic model; None for others.
    """

    def __init__(
        self,
        config: str | os.PathLike,
        weights: str | os.PathLike | None,
        *,
        device: str | torch.device,
        dtype: str,
        compile: str | None,  # noqa: A002 (torch's word)
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'dtype is {dtype!r}; allowed: {", ".join(DTYPES)}')
        self.device = _find_device(device)
        self._dtype = DTYPES[dtype]
        self.cfg, self.weights = resolve_model(config, weights)
        self._scope = self.cfg.get('default_scope', 'mmengine')
        model, self.names = build_model(self.cfg, self.weights)
        self.outputs = find_outputs(model)
        self.things = getattr(getattr(model, 'panoptic_fusion_head', None), 'num_things_classes', None)
        self.model = model.to(self.device)
        if compile is not None:
            compile_model(self.model, mode=compile)
        steps = find_pipeline(self.cfg)
        self._loading = steps[0]
        with DefaultScope.overwrite_default_scope(self._scope):
            self._load, self._transform = Compose(steps[:1]), Compose(steps[1:])

    def read_file(self, path: str) -> dict[str, Any]:
        """What the loading step of the pipeline gives for an image file; ``img`` is the image."""
        loaded = self._load(_description(path))
        if loaded is None:
            raise ValueError('the pipeline gives no image')
        return loaded

    def read_array(self, image: np.ndarray, name: str) -> dict[str, Any]:
        """What :meth:`read_file` gives, for an image in RGB."""
        image = np.ascontiguousarray(image[..., ::-1])  # mmcv's order is BGR
        if self._loading.get('color_type') == 'grayscale':
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if self._loading.get('to_float32'):
            image = image.astype(np.float32)
        return {**_description(name), 'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}

    def predict(self, images: Sequence[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
        """Predictions for images of :meth:`read_file` and :meth:`read_array`, see :func:`~.results.read_sample`.

        Those of one size after the pipeline go through the network together.
        """
        with DefaultScope.overwrite_default_scope(self._scope):
            packed = [self._transform({**one, 'img': one['img'].copy()}) for one in images]
            samples: list[Any] = [None] * len(packed)
            shapes = [tuple(one['inputs'].shape) for one in packed]
            for shape in dict.fromkeys(shapes):
                members = [index for index, one in enumerate(shapes) if one == shape]
                data = pseudo_collate([packed[index] for index in members])
                with torch.no_grad(), torch.autocast(
                    self.device.type, self._dtype, enabled=self._dtype is not torch.float32
                ):  # fmt: skip
                    for index, sample in zip(members, self.model.test_step(data), strict=True):
                        samples[index] = sample
        return [read_sample(sample, self.outputs) for sample in samples]


def _description(path: str) -> dict[str, Any]:
    return {'img_path': path, 'img_id': 0, 'sample_idx': 0, 'seg_fields': []}


def _find_device(device: str | torch.device) -> torch.device:
    if device == 'auto':
        return torch.device(get_device())
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ImportError) as error:
        text = str(error).splitlines()[0]
        raise ValueError(f'device {str(device)!r} cannot be used ({text}); give auto, cpu or cuda:0') from None
    return found
