"""Predictions for images, folders and videos with the model of any config, in one line."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mmitpn.apis.data_sources import DataSource, SourceItem
from mmitpn.apis.results import Result, read_values
from mmitpn.apis.tiling import predict_tiled
from mmitpn.deploy.exported_model import ExportedModel
from mmitpn.deploy.runtimes import format_of
from mmitpn.utils import check_int

if TYPE_CHECKING:
    import torch

_DECODING_ERRORS = (OSError, ValueError, AssertionError, AttributeError, cv2.error)  # of mmcv's LoadImageFromFile


class Predictor:
    """A trained detector, segmentor or classifier, ready for images.

    Predictions are those of ``mmitpn test``: the model, its weights and the test pipeline of the config, without
    test-time augmentation.

    Args:
        config: Path of a config of mmdet, mmseg or mmpretrain; the name of one of ours; ``FRAMEWORK::NAME`` for one of
            an installed framework; or the name of a complete model, ``nano-shapes``, whose weights are then known too.
            Also a file of ``mmitpn export`` (``.onnx``, ``.xml``, ``.pt2``), which has its weights inside and runs on
            the CPU.
        weights: The checkpoint of the whole model: a file, an address, a sharded checkpoint (a folder), or a name
            (``mmitpn weights list``). Nothing in it is executed. The released files of MaskDINO and the fine-tuned
            classifiers of the iTPN authors are read as they are. None: for a complete model by name, or an exported
            file.
        device: ``auto`` (a GPU if there is one), or as of torch: ``cpu``, ``cuda:1``.
        dtype: ``float32``, or ``bfloat16`` or ``float16`` for autocast, which is faster on GPUs and less exact.
        compile: Compile the model: a mode of :func:`torch.compile`, ``'default'`` or ``'reduce-overhead'`` (CUDA
            graphs). The first images take minutes then. None: do not.
        threads: Number of threads of an exported file; None: those of the processor.
        trust: Load a ``.pt2`` file, in which torch may execute code.

    Attributes:
        names: Names of the classes.
        outputs: What the model gives: some of boxes, masks, panoptic, semantic, probabilities.
        weights: Path or address of the weights; of an exported file its own path.
        device: The torch device, or ``cpu``.
        model: The torch model; of an exported file the :class:`~mmitpn.deploy.exported_model.ExportedModel`.
        cfg: Its config; None of an exported file.

    Raises:
        ImportError: If the runtime of an exported file is not installed.
        FileNotFoundError: If there is no such config or file.
        ValueError: If a config is given without weights; the file lacks weights of the model, such as those of the
            head, or has them in another shape; a name is unknown; the model is no detector, segmentor or classifier;
            the device cannot be used; a ``.pt2`` file is not trusted; or an argument is for another kind of model, such
            as ``threads`` for a config, or ``dtype`` for an exported file.

    Examples:
        >>> import mmitpn
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
        threads: int | None = None,
        trust: bool = False,
    ) -> None:
        self._backend: Any
        if format_of(config) is not None:
            _check_exported(config, weights=weights, device=device, dtype=dtype, compiled=compile)
            self._backend = self.model = ExportedModel(config, threads=threads, trust=trust)
            self.cfg, self.weights, self.device = None, os.fspath(config), 'cpu'
        else:
            from mmitpn.apis.framework_model import FrameworkModel

            if threads is not None:
                raise ValueError(f'threads is {threads}, which is for exported files; for PyTorch set OMP_NUM_THREADS')
            self._backend = FrameworkModel(config, weights, device=device, dtype=dtype, compile=compile)
            self.cfg, self.weights, self.device = self._backend.cfg, self._backend.weights, self._backend.device
            self.model = self._backend.model
        self.names, self.outputs = self._backend.names, self._backend.outputs

    def __repr__(self) -> str:
        kind = type(self.model).__name__ if self.cfg is not None else f'{self.weights}, {self.model.info.precision}'
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
            ImportError: If an image has to be cut into tiles, and supervision is not installed.
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
        """An image as the model takes it; ``img`` is the image in BGR or gray."""
        if item.image is None:
            return self._backend.read_file(str(item.path or item.name))
        return self._backend.read_array(item.image, str(item.path or item.name))

    def _predict_batch(self, chunk: Sequence[tuple[SourceItem, dict[str, Any]]], score: float) -> list[Result]:
        found = self._backend.predict([loaded for _, loaded in chunk])
        return [self._result(item, values, score) for (item, _), values in zip(chunk, found, strict=True)]

    def _result(self, item: SourceItem, raw: dict[str, np.ndarray], score: float) -> Result:
        values, segments = read_values(raw, self.names, things=self._backend.things, score=score)
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


def _check_exported(path: Any, *, weights: Any, device: Any, dtype: str, compiled: str | None) -> None:
    """Raise for arguments that an exported file does not take."""
    if weights is not None:
        raise ValueError(f'{path} has its weights inside: leave weights out ({weights!r})')
    if str(device) not in ('auto', 'cpu'):
        raise ValueError(f'device is {str(device)!r}, but exported files run on the CPU here: give auto or cpu')
    if dtype != 'float32' or compiled is not None:
        raise ValueError(
            f'dtype is {dtype!r} and compile {compiled!r}, which are for PyTorch; the precision of an exported file is'
            ' chosen at its export (--precision)'
        )


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
