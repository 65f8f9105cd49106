"""Predictions for images, folders and videos with the model of any config, in one line."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DefaultScope

from mmitpn.apis.data_sources import DataSource, SourceItem
from mmitpn.apis.model_loading import build_model, find_outputs, find_pipeline, resolve_model
from mmitpn.apis.results import Result, read_prediction
from mmitpn.apis.tiling import predict_tiled
from mmitpn.engine.compile import compile_model
from mmitpn.utils import check_int

DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
_DECODING_ERRORS = (OSError, ValueError, AssertionError, AttributeError, cv2.error)  # of mmcv's LoadImageFromFile


class Predictor:
    """A trained detector, segmentor or classifier, ready for images.

    Predictions are those of ``mmitpn test``: the model, its weights and the test pipeline of the config, without
    test-time augmentation.

    Args:
        config: Path of a config of mmdet, mmseg or mmpretrain; the name of one of ours; ``HOST::NAME`` for one of an
            installed framework; or the name of a complete model, ``nano-shapes``, whose weights are then known too.
        weights: The checkpoint of the whole model: a file, an address, a sharded checkpoint (a folder), or a name
            (``mmitpn weights list``). Nothing in it is executed. The released files of MaskDINO and the fine-tuned
            classifiers of the iTPN authors are read as they are.
        device: ``auto`` (a GPU if there is one), or as of torch: ``cpu``, ``cuda:1``.
        dtype: ``float32``, or ``bfloat16`` or ``float16`` for autocast, which is faster on GPUs and less exact.
        compile: Compile the model: a mode of :func:`torch.compile`, ``'default'`` or ``'reduce-overhead'`` (CUDA
            graphs). The first images take minutes then. None: do not.

    Attributes:
        names: Names of the classes.
        outputs: What the model gives: some of boxes, masks, panoptic, semantic, probabilities.
        device: The torch device.
        model: The model.
        cfg: Its config.

    Raises:
        FileNotFoundError: If there is no such config or file.
        ValueError: If the file lacks weights of the model, such as those of the head, or has them in another shape; a
            name is unknown; or the model is no detector, segmentor or classifier.

    Example:
        >>> model = mmitpn.Predictor('nano-shapes')
        >>> for result in model.predict('images/'):
        ...     print(result.boxes, result.names)
        ...     result.save(f'out/{result.name}')
    """

    def __init__(
        self,
        config: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        *,
        device: str | torch.device = 'auto',
        dtype: str = 'float32',
        compile: str | None = None,  # noqa: A002 (torch's word)
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'dtype is {dtype!r}; allowed: {", ".join(DTYPES)}')
        self.device = _find_device(device)
        self._dtype = DTYPES[dtype]
        self.cfg, self.weights = resolve_model(config, weights)
        self._scope = self.cfg.get('default_scope', 'mmengine')
        model, self.names = build_model(self.cfg, self.weights)
        self.outputs = find_outputs(model)
        self.model = model.to(self.device)
        if compile is not None:
            compile_model(self.model, mode=compile)
        steps = find_pipeline(self.cfg)
        self._loading = steps[0]
        with DefaultScope.overwrite_default_scope(self._scope):
            self._load, self._transform = Compose(steps[:1]), Compose(steps[1:])

    def __repr__(self) -> str:
        kind = type(self.model).__name__
        return f'Predictor({kind}, {len(self.names)} classes, gives {", ".join(self.outputs)}, on {self.device})'

    def predict(
        self,
        source: Any,
        *,
        score: float = 0.3,
        batch: int = 1,
        tile: int | None = None,
        overlap: float = 0.2,
        on_broken: Callable[[str, Exception], None] | None = None,
    ) -> Iterator[Result]:
        """Predict images one after another; at most ``batch`` of them are in memory.

        Args:
            source: An image or video file, a folder (without its subfolders), a glob, a URL, a camera number, a PIL
                image, an RGB array, or a list of these; or a :class:`mmitpn.apis.data_sources.DataSource`, which
                describes them.
            score: Objects with a lower score are left out; 0 keeps all that the model gives.
            batch: Images that the model takes at once. Only those of equal size after resizing are put together, so
                that no result depends on other images.
            tile: Side in pixels of the tiles into which larger images are cut, for boxes and masks; objects that they
                cut are found whole. None: the whole image at once.
            overlap: Of neighboring tiles, as a fraction of ``tile``.
            on_broken: Is called with the name and the error of each image or video of several that cannot be read;
                None: a warning. A source of one image raises the error.

        Returns:
            An iterator of :class:`Result` in the order of the source.

        Raises:
            FileNotFoundError: If there is no such file, or none in a folder.
            TypeError: If the source is of another type.
            ValueError: If an argument is out of range, a single image or video cannot be decoded, or the model gives
                what cannot be tiled.
        """
        if isinstance(score, bool) or not isinstance(score, Real) or not 0 <= score <= 1:
            raise ValueError(f'score is {score!r}; give a number from 0 to 1')
        check_int('batch', batch)
        if tile is not None:
            check_int('tile', tile, least=16)
            self._check_tiling(overlap)
        data = source if isinstance(source, DataSource) else DataSource(source)
        return self._predict(data, score, batch, tile, overlap, on_broken or _warn_broken)

    def _check_tiling(self, overlap: float) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f'overlap is {overlap!r}; give a fraction of the tile, from 0 to less than 1')
        if set(self.outputs) - {'boxes', 'masks'}:
            advice = (
                "; a segmentor of mmseg slides over the image by model.test_cfg=dict(mode='slide', crop_size=...,"
                ' stride=...) in its config'
                if self.outputs == ('semantic',)
                else ''
            )
            raise ValueError(f'tile is for boxes and masks of objects, but the model gives {self.outputs}{advice}')

    def _predict(
        self,
        data: DataSource,
        score: float,
        batch: int,
        tile: int | None,
        overlap: float,
        on_broken: Callable[[str, Exception], None],
    ) -> Iterator[Result]:
        items = self._read(data, on_broken)
        while chunk := list(itertools.islice(items, batch)):
            if tile is None:
                results = self._predict_batch(chunk, score)
            else:
                results = (self._predict_tiles(item, score, batch, tile, overlap) for item, _ in chunk)
            chunk = []  # what follows is in memory once
            yield from _drain(results)

    def _read(
        self, data: DataSource, on_broken: Callable[[str, Exception], None]
    ) -> Iterator[tuple[SourceItem, dict[str, Any]]]:
        """The items with their image and what the first step of the pipeline makes of it; broken ones are reported."""
        for item in data:
            error = item.error
            if error is None:
                try:
                    loaded = self._load_image(item)
                except _DECODING_ERRORS as problem:
                    error = ValueError(f'{item.path or item.name} cannot be decoded as an image ({_reason(problem)})')
            if error is None:
                yield replace(item, image=_to_rgb(loaded['img'])), loaded
            elif data.is_single:
                raise error
            else:
                on_broken(item.name if item.path is None else str(item.path), error)

    def _load_image(self, item: SourceItem) -> dict[str, Any]:
        """What the loading step of the pipeline gives for a file, and the same for an array."""
        results = {'img_path': str(item.path or item.name), 'img_id': 0, 'sample_idx': 0, 'seg_fields': []}
        if item.image is None:
            loaded = self._load(results)
            if loaded is None:
                raise ValueError('the pipeline gives no image')
            return loaded
        image = np.ascontiguousarray(item.image[..., ::-1])  # mmcv's order is BGR
        if self._loading.get('color_type') == 'grayscale':
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if self._loading.get('to_float32'):
            image = image.astype(np.float32)
        return {**results, 'img': image, 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}

    def _predict_batch(self, chunk: Sequence[tuple[SourceItem, dict[str, Any]]], score: float) -> list[Result]:
        packed = []
        with DefaultScope.overwrite_default_scope(self._scope):
            for _, loaded in chunk:
                packed.append(self._transform({**loaded, 'img': loaded['img'].copy()}))
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
        return [self._result(item, sample, score) for (item, _), sample in zip(chunk, samples, strict=True)]

    def _result(self, item: SourceItem, sample: Any, score: float) -> Result:
        things = getattr(getattr(self.model, 'panoptic_fusion_head', None), 'num_things_classes', None)
        values, segments = read_prediction(sample, self.outputs, self.names, things=things, score=score)
        return Result(item.image, item.name, self.names, values, item.path, item.frame, item.video, segments)

    def _predict_tiles(self, item: SourceItem, score: float, batch: int, tile: int, overlap: float) -> Result:
        def predict(images: list[np.ndarray]) -> list[Result]:
            parts = [replace(item, image=image) for image in images]
            return self._predict_batch([(part, self._load_image(part)) for part in parts], score)

        if max(item.image.shape[:2]) <= tile:
            return predict([item.image])[0]
        values = predict_tiled(item.image, predict, tile=tile, overlap=overlap, batch=batch)
        if 'masks' in self.outputs and 'masks' not in values:
            values['masks'] = np.zeros((0, *item.image.shape[:2]), dtype=bool)
        return Result(item.image, item.name, self.names, values, item.path, item.frame, item.video)


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


def _to_rgb(image: np.ndarray) -> np.ndarray:
    """The image as mmcv loads it (BGR or gray) in RGB, uint8."""
    if image.dtype != np.uint8:
        image = np.clip(image, 0, 255).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image[..., 2::-1])


def _drain(results: Iterable[Result]) -> Iterator[Result]:
    """Yield results without a reference to those that were yielded."""
    if isinstance(results, list):
        results.reverse()
        while results:
            yield results.pop()
    else:
        yield from results


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _warn_broken(name: str, error: Exception) -> None:
    warnings.warn(f'{name} is left out: {error}', stacklevel=4)
