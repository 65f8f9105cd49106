"""An exported network with its preprocessing and post-processing: images in, predictions out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmitpn.deploy import postprocessing
from mmitpn.deploy.preprocessing import PreparedImage, pad_images, prepare_image, read_image
from mmitpn.deploy.runtimes import load_session


class ExportedModel:
    """The model in a file of ``mmitpn export``; :class:`mmitpn.Predictor` uses it.

    Args:
        path: The file.
        threads: See :func:`~mmitpn.deploy.runtimes.load_session`.
        trust: Likewise.

    Attributes:
        info: Metadata of the file.
        session: The network in its runtime.
        names: Names of the classes.
        outputs: What the model gives, see :class:`mmitpn.Predictor`.
        things: Number of thing classes of a panoptic model; None for others.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If its runtime is not installed.
        ValueError: If the file is damaged, was not written by mmitpn, or gives features only.
    """

    def __init__(self, path: str | os.PathLike, *, threads: int | None = None, trust: bool = False) -> None:
        self.session = load_session(path, threads=threads, trust=trust)
        self.info = self.session.info
        if self.info.task == 'features':
            raise ValueError(
                f'{path} gives the features of backbone and pyramid, no predictions: run it by'
                ' mmitpn.deploy.runtimes.load_session(FILE).run(...), or export a complete model'
            )
        self.names, self.outputs = self.info.classes, self.info.outputs
        self.things = self.info.settings.get('num_things')

    def read_file(self, path: str) -> dict[str, Any]:
        """An image file as the model takes it: ``img``, BGR, uint8 ``(H, W, 3)``."""
        return {'img': read_image(path)}

    def read_array(self, image: np.ndarray, name: str) -> dict[str, Any]:
        """What :meth:`read_file` gives, for an image in RGB."""
        del name
        return {'img': np.ascontiguousarray(image[..., ::-1])}

    def predict(self, images: Sequence[Mapping[str, Any]]) -> list[dict[str, np.ndarray]]:
        """Predictions for images, by the names of :class:`mmitpn.Result`'s ``values``; ``panoptic`` as in mmdet.

        Images of one size after resizing go through the network together, as many as the file takes at once.
        """
        prepared = [prepare_image(image['img'], self.info) for image in images]
        groups: dict[Any, list[int]] = {}
        for index, one in enumerate(prepared):
            groups.setdefault(one.size if self.info.size is None else None, []).append(index)
        results: list[Any] = [None] * len(images)
        for members in groups.values():
            step = self.info.batch or len(members)
            for first in range(0, len(members), step):
                some = members[first : first + step]
                for index, values in zip(some, self._predict([prepared[index] for index in some]), strict=True):
                    results[index] = values
        return results

    def _predict(self, images: Sequence[PreparedImage]) -> list[dict[str, np.ndarray]]:
        task, info = self.info.task, self.info
        if task in ('segmentation', 'query_segmentation'):
            return self._predict_label_maps(images)
        inputs = pad_images([one.pixels for one in images], info)
        outputs = self.session.run(inputs)
        if task == 'detection':
            return postprocessing.read_detections(outputs, images)
        if task == 'queries':
            return postprocessing.read_queries(outputs, images, inputs['images'].shape[2:], info)
        return postprocessing.read_probabilities(outputs, images)

    def _predict_label_maps(self, images: Sequence[PreparedImage]) -> list[dict[str, np.ndarray]]:
        """Label maps, by sliding windows if the model has them; the scores of windows are averaged, as in mmseg."""
        slide = self.info.settings.get('slide')
        if slide is None:
            scores = self._class_maps([one.pixels for one in images])
        else:
            pixels = np.stack([one.pixels for one in images])
            scores, counts = None, np.zeros(pixels.shape[-2:], dtype=np.float32)
            for rows, columns in windows(pixels.shape[-2:], slide):
                found = self._class_maps(list(pixels[:, :, rows, columns]))
                if scores is None:
                    scores = found.new_zeros(*found.shape[:2], *pixels.shape[-2:])
                height, width = rows.stop - rows.start, columns.stop - columns.start
                scores[:, :, rows, columns] += found[:, :, :height, :width]
                counts[rows, columns] += 1
            scores = scores / torch.from_numpy(counts)
        return [
            postprocessing.read_label_map(one, image, self.info)
            for one, image in zip(scores[: len(images)], images, strict=True)
        ]

    def _class_maps(self, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        inputs = pad_images(pixels, self.info)
        return postprocessing.class_maps(self.session.run(inputs), inputs['images'].shape[2:], self.info)


def windows(size: tuple[int, int], slide: Mapping[str, Any]) -> list[tuple[slice, slice]]:
    """Rows and columns of the windows that cover an image; those at the border are moved inside.

    Args:
        size: Height and width.
        slide: ``crop_size`` and ``stride``, both (height, width).
    """
    ranges = []
    for side, crop, stride in zip(size, slide['crop_size'], slide['stride'], strict=True):
        number = max(side - crop + stride - 1, 0) // stride + 1
        stops = [min(index * stride + crop, side) for index in range(number)]
        ranges.append([slice(max(stop - crop, 0), stop) for stop in stops])
    return [(rows, columns) for rows in ranges[0] for columns in ranges[1]]
