"""What a report keeps of each sample while a model is evaluated: results and counts, never the whole arrays."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from pycocotools import mask as coco_mask

MAP_SIDE = 320
"""Longest side in pixels of the label maps that are kept."""


@dataclass(frozen=True)
class SmallMap:
    """A label map of at most ``MAP_SIDE`` pixels, compressed to a few kB.

    Attributes:
        shape: Height and width.
        data: Class index of each pixel (int32), and -1 for none.
        segments: Segment id of each pixel (int32), for panoptic maps.
    """

    shape: tuple[int, int]
    data: bytes
    segments: bytes | None = None

    @classmethod
    def shrink(cls, labels: np.ndarray, ids: np.ndarray | None = None) -> SmallMap:
        """Keep the nearest pixels of a map ``(H, W)`` of class indices, and of one of segment ids."""
        step = max(1.0, max(labels.shape) / MAP_SIDE)
        rows, columns = (np.arange(max(1, int(side / step))) * step for side in labels.shape)
        grid = np.ix_(rows.astype(int), columns.astype(int))
        small = [None if one is None else one[grid].astype(np.int32) for one in (labels, ids)]
        return cls(small[0].shape, *(None if one is None else zlib.compress(one.tobytes()) for one in small))

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The class indices and the segment ids, int32 ``(H, W)`` each."""
        labels, ids = (
            None if one is None else np.frombuffer(zlib.decompress(one), np.int32).reshape(self.shape)
            for one in (self.data, self.segments)
        )
        return labels, ids


@dataclass(frozen=True)
class Sample:
    """What is kept of an image.

    Attributes:
        task: 'detection', 'panoptic', 'semantic', 'classification', or 'other': then nothing else is kept.
        image: Path of the image file, if the pipeline packs it.
        values: By task. Detection: ``id``, ``shape`` (H, W), ``boxes`` (x1, y1, x2, y2 in pixels, ``(N, 4)``),
            ``labels``, ``scores``, ``masks`` (RLE) and ``mask_scores`` or None, and the ground truth where it was
            asked for. Panoptic: ``tallies`` by class. Semantic: ``pairs`` (ground truth * number of classes +
            prediction) and their ``counts`` in pixels. Both: ``maps`` of ground truth and prediction.
            Classification: ``gt``, ``pred``, ``score`` of the prediction.
    """

    task: str
    image: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


class ReportCollector(BaseMetric):
    """A metric without figures: it keeps of each sample what a report needs.

    A detector costs as much memory as with ``CocoMetric``, a segmentation model a few kB per image.

    Args:
        keep_ground_truth: Keep the boxes of the ground truth as the pipeline packs them, where there is no file of COCO
            annotations to read.
        ignore_index: Label of pixels without ground truth in label maps.

    Attributes:
        samples: What was kept of the whole dataset, in the main process, after the evaluation.
    """

    default_prefix = 'report'

    def __init__(self, *, keep_ground_truth: bool = False, ignore_index: int = 255) -> None:
        super().__init__()
        self.keep_ground_truth = keep_ground_truth
        self.ignore_index = ignore_index
        self.samples: list[Sample] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:  # noqa: ARG002
        """Keep the samples of a batch."""
        self.results.extend(self._reduce(sample) for sample in data_samples)

    def compute_metrics(self, results: list[Sample]) -> dict[str, float]:
        """Take over the samples of all processes; there are no figures."""
        self.samples = results
        return {}

    def _reduce(self, sample: Mapping[str, Any]) -> Sample:
        image = sample.get('img_path')
        if 'pred_panoptic_seg' in sample and sample.get('seg_map_path') and 'segments_info' in sample:
            return Sample('panoptic', image, self._panoptic(sample))
        if 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
            return Sample('semantic', image, self._semantic(sample))
        found = sample.get('pred_instances', {})
        if {'bboxes', 'scores', 'labels'} <= set(found) and found['bboxes'].shape[-1] == 4:
            return Sample('detection', image, self._detection(sample))
        if 'pred_score' in sample and torch.as_tensor(sample.get('gt_label', ())).numel() == 1:
            score = sample['pred_score'].cpu()
            values = {'gt': int(sample['gt_label']), 'pred': int(score.argmax()), 'score': float(score.max())}
            return Sample('classification', image, values)
        return Sample('other')

    def _detection(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        found = sample['pred_instances']
        masks, mask_scores = found.get('masks'), found.get('mask_scores')
        if isinstance(masks, torch.Tensor):
            masks = coco_mask.encode(np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0).astype(np.uint8)))
        values = {
            'id': sample['img_id'],
            'shape': tuple(sample['ori_shape'][:2]),
            'boxes': found['bboxes'].cpu().numpy(),
            'labels': found['labels'].cpu().numpy(),
            'scores': found['scores'].cpu().numpy(),
            'masks': masks,
            'mask_scores': None if mask_scores is None else mask_scores.cpu().numpy(),
        }
        if self.keep_ground_truth:
            for key, name in (('gt', 'gt_instances'), ('ignored', 'ignored_instances')):
                one = sample.get(name) or {}
                if 'bboxes' in one:
                    boxes = getattr(one['bboxes'], 'tensor', one['bboxes'])
                    values[key] = (np.asarray(boxes.cpu()), np.asarray(one['labels'].cpu()))
        return values

    def _semantic(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        gt, pred = (
            sample[name]['data'].squeeze().cpu().numpy().astype(np.int64) for name in ('gt_sem_seg', 'pred_sem_seg')
        )
        number = len(self.dataset_meta['classes'])
        known = (gt != self.ignore_index) & (gt >= 0) & (gt < number)
        counts = np.bincount(gt[known] * number + pred[known], minlength=1)
        pairs = np.flatnonzero(counts)
        maps = SmallMap.shrink(np.where(known, gt, -1)), SmallMap.shrink(pred)
        return {'pairs': pairs, 'counts': counts[pairs], 'maps': maps}

    def _panoptic(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        from mmitpn.evaluation.panoptic_metric import PanopticMetric, compare_segments  # needs mmdet

        metric = PanopticMetric(classwise=False)
        metric.dataset_meta = self.dataset_meta
        ground_truth, prediction = metric.read_ground_truth(sample), metric.read_prediction(sample)
        classes = {number: label for number, (label, _) in ground_truth[1].items()}
        maps = []
        for ids, labels in ((ground_truth[0], classes), (prediction[0], prediction[1])):
            seen, index = np.unique(ids, return_inverse=True)
            of_segment = np.array([labels.get(int(one), -1) for one in seen])
            maps.append(SmallMap.shrink(of_segment[index].reshape(ids.shape), ids))
        return {'tallies': compare_segments(*ground_truth, *prediction), 'maps': tuple(maps)}
