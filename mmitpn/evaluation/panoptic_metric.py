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

from mmitpn.registry import METRICS
from mmitpn.tables import format_table
from mmitpn.utils import id2rgb, rgb2id


class Tally(NamedTuple):
    """Segments of one class: sum of the IoU of matches, true positives, false positives, false negatives."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def plus(self, other: Tally) -> Tally:
        """The sum of both."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def quality(self) -> tuple[float, float, float] | None:
        """PQ, SQ and RQ, from 0 to 1; None without any segment."""
        total = self.tp + 0.5 * self.fp + 0.5 * self.fn
        if not total:
            return None
        sq = self.iou / self.tp if self.tp else 0.0
        return self.iou / total, sq, self.tp / total


def compare_segments(
    gt_ids: np.ndarray,
    gt_segments: Mapping[int, tuple[int, bool]],
    pred_ids: np.ndarray,
    pred_labels: Mapping[int, int],
) -> dict[int, Tally]:
    """Match the segments of one image (arXiv 1801.00868).

    A predicted and a ground-truth segment match if they have one class and an IoU above 0.5, which at most one pair
    can have. Pixels without ground truth are not counted, and a prediction that lies mostly there, or in a crowd of
    its class, is not a false positive.

    Args:
        gt_ids: Ids of the ground-truth segments, ``(H, W)``; ids that are not in ``gt_segments`` are unlabeled.
        gt_segments: Id -> class, and whether it is a crowd.
        pred_ids: Ids of predicted segments, ``(H, W)``; ids that are not in ``pred_labels`` are not predictions.
        pred_labels: Id -> class.

    Returns:
        Class -> its tally.
    """
    gt_seen, gt_index = np.unique(gt_ids, return_inverse=True)
    pred_seen, pred_index = np.unique(pred_ids, return_inverse=True)
    overlap = np.zeros((len(gt_seen), len(pred_seen)), dtype=np.int64)
    np.add.at(overlap, (gt_index.ravel(), pred_index.ravel()), 1)
    unlabeled = overlap[np.array([one not in gt_segments for one in gt_seen])].sum(0)
    tallies: dict[int, Tally] = defaultdict(Tally)
    matched_gt, matched_pred = set(), set()
    for i, gt in enumerate(gt_seen):
        if gt not in gt_segments or gt_segments[gt][1]:
            continue
        for j, pred in enumerate(pred_seen):
            if pred not in pred_labels or pred_labels[pred] != gt_segments[gt][0] or not overlap[i, j]:
                continue
            union = overlap[i].sum() + overlap[:, j].sum() - unlabeled[j] - overlap[i, j]
            iou = overlap[i, j] / union
            if iou > 0.5:
                tallies[pred_labels[pred]] = tallies[pred_labels[pred]].plus(Tally(float(iou), 1))
                matched_gt.add(gt)
                matched_pred.add(pred)
    for gt, (label, crowd) in gt_segments.items():
        if not crowd and gt not in matched_gt and gt in gt_seen:
            tallies[label] = tallies[label].plus(Tally(fn=1))
    for j, pred in enumerate(pred_seen):
        if pred not in pred_labels or pred in matched_pred:
            continue
        crowds = [i for i, gt in enumerate(gt_seen) if gt_segments.get(gt) == (pred_labels[pred], True)]
        if unlabeled[j] + overlap[crowds, j].sum() <= 0.5 * overlap[:, j].sum():
            tallies[pred_labels[pred]] = tallies[pred_labels[pred]].plus(Tally(fp=1))
    return dict(tallies)


@METRICS.register_module()
class PanopticMetric(BaseMetric):
    """PQ, SQ and RQ of all classes, of things and of stuff, in percent.

    The ground truth is read from what the pipeline packs: ``meta_keys`` of ``PackDetInputs`` must have
    ``seg_map_path`` and ``segments_info``, and the dataset must be a ``CocoPanopticDataset`` with
    ``data_prefix=dict(seg=...)``.

    Args:
        backend_args: Of mmengine's file client.
        classwise: Log a table of all classes.
        output_dir: Write the predicted segments there, as COCO's PNGs: an id is class + 1000 * index of the instance.
            ``meta_keys`` must have ``img_path`` then, whose stem is the name of the file.
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
        """Compare the images of a batch.

        Raises:
            ValueError: If the pipeline did not pack the ground truth.
        """
        for sample in data_samples:
            gt_ids, segments = self.read_ground_truth(sample)
            pred_ids, labels = self.read_prediction(sample)
            if self.output_dir is not None:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                out_file = self.output_dir / f'{Path(sample["img_path"]).stem}.png'
                Image.fromarray(id2rgb(pred_ids)).save(out_file)
            self.results.append(compare_segments(gt_ids, segments, pred_ids, labels))

    def read_ground_truth(self, sample: Mapping[str, Any]) -> tuple[np.ndarray, dict[int, tuple[int, bool]]]:
        """Read the segments of one image, as :func:`compare_segments` takes them.

        Raises:
            ValueError: If the pipeline did not pack the ground truth.
        """
        if sample.get('seg_map_path') is None or 'segments_info' not in sample:
            raise ValueError(
                "PanopticMetric needs the ground truth: let meta_keys of PackDetInputs have 'seg_map_path' and"
                " 'segments_info', and the dataset data_prefix=dict(seg=...)"
            )
        things, names = set(self.dataset_meta['thing_classes']), self.dataset_meta['classes']
        segments = {
            one['id']: (one['category'], not one['is_thing'] and names[one['category']] in things)
            for one in sample['segments_info']
        }
        return rgb2id(self._read(sample['seg_map_path'])), segments

    def read_prediction(self, sample: Mapping[str, Any]) -> tuple[np.ndarray, dict[int, int]]:
        """The predicted segments of one image, as :func:`compare_segments` takes them."""
        pred_ids = np.asarray(sample['pred_panoptic_seg']['sem_seg'].cpu())[0]
        labels = {int(number): int(number) % INSTANCE_OFFSET for number in np.unique(pred_ids)}
        number = len(self.dataset_meta['classes'])
        return pred_ids, {segment: label for segment, label in labels.items() if label < number}

    def _read(self, path: str) -> np.ndarray:
        return np.asarray(Image.open(BytesIO(get(path, backend_args=self.backend_args))).convert('RGB'))

    def compute_metrics(self, results: list[dict[int, Tally]]) -> dict[str, float]:
        """The mean over classes that have any segment.

        Args:
            results: Class -> tally of each image.

        Returns:
            ``PQ``, ``SQ``, ``RQ`` of all classes, and the same with ``_th`` of things and with ``_st`` of stuff, in
            percent; mmengine puts ``coco_panoptic/`` before the names.
        """
        total: dict[int, Tally] = defaultdict(Tally)
        for of_image in results:
            for label, tally in of_image.items():
                total[label] = total[label].plus(tally)
        names, things = self.dataset_meta['classes'], set(self.dataset_meta['thing_classes'])
        quality = {names[label]: tally.quality for label, tally in sorted(total.items()) if tally.quality is not None}
        if self.classwise:
            rows = [(name, *(f'{100 * value:.1f}' for value in values)) for name, values in quality.items()]
            print_log('\n' + format_table(('class', 'PQ', 'SQ', 'RQ'), rows), 'current', logging.INFO)
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
