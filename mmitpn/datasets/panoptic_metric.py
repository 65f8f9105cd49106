"""Panoptic quality, without panopticapi, which is in no package index."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from mmengine.logging import print_log
from PIL import Image
from prettytable import PrettyTable

from mmitpn.registry import METRICS

from .panoptic_loading import segment_ids


class Tally(NamedTuple):
    """Segments of one class: sum of the IoU of matches, matches, predictions without one, truth without one."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def quality(self) -> tuple[float, float, float] | None:
        """PQ, SQ and RQ, from 0 to 1; None where there is no segment at all."""
        total = self.tp + 0.5 * self.fp + 0.5 * self.fn
        if not total:
            return None
        sq = self.iou / self.tp if self.tp else 0.0
        return self.iou / total, sq, self.tp / total


def compare_segments(
    truth: np.ndarray, segments: Mapping[int, tuple[int, bool]], found: np.ndarray, classes: Mapping[int, int]
) -> dict[int, Tally]:
    """Match the segments of one picture (arXiv 1801.00868).

    A predicted segment and one of the truth match if they have one class and an IoU above 0.5, which at most one pair
    can have. Pixels without truth do not count, and a prediction that lies mostly there, or in a crowd of its class,
    is no mistake.

    Args:
        truth: Numbers of segments, ``(h, w)``; what is not in ``segments`` has no truth.
        segments: Number -> class, and whether it is a crowd.
        found: Numbers of predicted segments, ``(h, w)``; what is not in ``classes`` is not predicted.
        classes: Number -> class.

    Returns:
        Class -> its tally.
    """
    places, of_truth = np.unique(truth, return_inverse=True)
    kinds, of_found = np.unique(found, return_inverse=True)
    shared = np.zeros((len(places), len(kinds)), dtype=np.int64)
    np.add.at(shared, (of_truth.ravel(), of_found.ravel()), 1)
    without = np.array([number not in segments for number in places])
    tallies: dict[int, Tally] = defaultdict(Tally)
    matched_truth, matched_found = set(), set()
    outside = shared[without].sum(0)
    for i, number in enumerate(places):
        if number not in segments or segments[number][1]:
            continue
        for j, other in enumerate(kinds):
            if other not in classes or classes[other] != segments[number][0] or not shared[i, j]:
                continue
            union = shared[i].sum() + shared[:, j].sum() - outside[j] - shared[i, j]
            iou = shared[i, j] / union
            if iou > 0.5:
                tallies[classes[other]] = tallies[classes[other]].plus(Tally(float(iou), 1))
                matched_truth.add(number)
                matched_found.add(other)
    for number, (label, crowd) in segments.items():
        if not crowd and number not in matched_truth and number in places:
            tallies[label] = tallies[label].plus(Tally(fn=1))
    for j, other in enumerate(kinds):
        if other not in classes or other in matched_found:
            continue
        crowds = [i for i, n in enumerate(places) if n in segments and segments[n] == (classes[other], True)]
        if outside[j] + shared[crowds, j].sum() <= 0.5 * shared[:, j].sum():
            tallies[classes[other]] = tallies[classes[other]].plus(Tally(fp=1))
    return dict(tallies)


@METRICS.register_module()
class PanopticMetric(BaseMetric):
    """PQ, SQ and RQ of all classes, of things and of stuff, in percent.

    The truth is read from what the pipeline packs: ``meta_keys`` of ``PackDetInputs`` must have ``seg_map_path`` and
    ``segments_info``, the data set must be a ``CocoPanopticDataset`` with ``data_prefix`` of ``seg``.

    Args:
        backend_args: Of mmengine's file client.
        classwise: Print a table of all classes.
        output_dir: Write the predicted segments there, as COCO's PNGs: their numbers are class + 1000 * number of the
            thing.
        **settings: As in mmengine's ``BaseMetric``.
    """

    default_prefix = 'coco_panoptic'

    def __init__(
        self,
        *,
        backend_args: dict | None = None,
        classwise: bool = True,
        output_dir: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.backend_args = backend_args
        self.classwise = classwise
        self.output_dir = None if output_dir is None else Path(output_dir)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:  # noqa: ARG002
        """Compare the pictures of a batch.

        Raises:
            ValueError: If the pipeline did not pack the truth.
        """
        for sample in data_samples:
            if sample.get('seg_map_path') is None or 'segments_info' not in sample:
                raise ValueError(
                    "PanopticMetric needs the truth: let meta_keys of PackDetInputs have 'seg_map_path' and"
                    " 'segments_info', and the data set data_prefix=dict(seg=...)"
                )
            truth = segment_ids(self._read(sample['seg_map_path']))
            things = set(self.dataset_meta['thing_classes'])
            names = self.dataset_meta['classes']
            segments = {
                one['id']: (one['category'], not one['is_thing'] and names[one['category']] in things)
                for one in sample['segments_info']
            }
            found = np.asarray(sample['pred_panoptic_seg']['sem_seg'].cpu())[0]
            labels = {int(number): int(number) % INSTANCE_OFFSET for number in np.unique(found)}
            labels = {number: label for number, label in labels.items() if label < len(names)}
            if self.output_dir is not None:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                pixels = np.stack([found >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
                Image.fromarray(pixels).save(self.output_dir / f'{Path(sample["img_path"]).stem}.png')
            self.results.append(compare_segments(truth, segments, found, labels))

    def _read(self, path: str) -> np.ndarray:
        return np.asarray(Image.open(BytesIO(get(path, backend_args=self.backend_args))).convert('RGB'))

    def compute_metrics(self, results: list[dict[int, Tally]]) -> dict[str, float]:
        """The mean over classes that have any segment.

        Args:
            results: Of every picture, class -> tally.
        """
        total: dict[int, Tally] = defaultdict(Tally)
        for picture in results:
            for label, tally in picture.items():
                total[label] = total[label].plus(tally)
        names, things = self.dataset_meta['classes'], set(self.dataset_meta['thing_classes'])
        quality = {names[label]: tally.quality for label, tally in sorted(total.items()) if tally.quality is not None}
        if self.classwise:
            table = PrettyTable(['class', 'PQ', 'SQ', 'RQ'])
            table.add_rows([[name, *(f'{100 * value:.1f}' for value in values)] for name, values in quality.items()])
            print_log('\n' + table.get_string(), 'current', logging.INFO)
        metrics = {}
        for suffix, chosen in (
            ('', list(quality.values())),
            ('_th', [values for name, values in quality.items() if name in things]),
            ('_st', [values for name, values in quality.items() if name not in things]),
        ):
            means = np.mean(chosen, axis=0) if chosen else (0.0, 0.0, 0.0)
            metrics |= {
                f'{name}{suffix}': round(100 * float(value), 3)
                for name, value in zip(('PQ', 'SQ', 'RQ'), means, strict=True)
            }
        return metrics
