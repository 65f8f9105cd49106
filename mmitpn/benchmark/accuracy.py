"""The accuracy of anything that predicts, by the metrics of a config: eager models and exported files the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, EVALUATOR, DefaultScope, init_default_scope
from mmengine.structures import InstanceData, PixelData

from mmitpn.apis.results import INSTANCE_OFFSET, Result
from mmitpn.config_check.model import compare_classes
from mmitpn.engine.cli import load_config, parse_options
from mmitpn.engine.runtime import setup_environment
from mmitpn.utils import quiet_imports

# Name of a metric -> what people call it, and the factor that makes points (0 to 100) of it; the first one counts.
HEADLINES: Mapping[str, tuple[str, float]] = {
    'PQ': ('PQ', 1),
    'segm_mAP': ('mask AP', 100),
    'bbox_mAP': ('box AP', 100),
    'mIoU': ('mIoU', 1),
    'accuracy/top1': ('top-1', 1),
}


class Predicts(Protocol):
    """What is evaluated: :class:`mmitpn.Predictor`, of an eager model or an exported file."""

    names: Sequence[str]

    def predict(self, source: Any, *, score: float) -> Iterator[Result]:
        """See :meth:`mmitpn.Predictor.predict`."""


@dataclass(frozen=True)
class TestData:
    """The test dataset and the metrics of a config.

    Attributes:
        cfg: The config.
        dataset: Its test dataset.
        classes: Names of the classes of the dataset.
    """

    __test__ = False  # pytest takes it for a test otherwise
    cfg: Config
    dataset: Any
    classes: tuple[str, ...]

    @classmethod
    def read(cls, config: str, options: Sequence[str] = ()) -> TestData:
        """Read the test dataset of a config.

        Args:
            config: A config, as of :func:`mmitpn.engine.config_utils.resolve_config`.
            options: Overrides as ``KEY=VALUE``.

        Raises:
            FileNotFoundError: If the config, or a file of its dataset, is not there.
            ValueError: If it has no test data, no metric, or no class names.
        """
        setup_environment()
        cfg = load_config(config, parse_options(options) if options else None)
        missing = [name for name in ('test_dataloader', 'test_evaluator') if cfg.get(name) is None]
        if missing:
            raise ValueError(f'the config {config} has no {" and no ".join(missing)}; add it to measure accuracy')
        with quiet_imports():
            init_default_scope(cfg.get('default_scope', 'mmengine'))
            dataset = DATASETS.build(cfg.test_dataloader.dataset)
        classes = dataset.metainfo.get('classes')
        if not classes:
            raise ValueError(
                f'the test dataset of {config} does not name its classes; add metainfo=dict(classes=(...))'
            )
        if not len(dataset):
            raise ValueError(f'the test dataset of {config} has no image; set its data_root, ann_file and data_prefix')
        return cls(cfg, dataset, tuple(classes))

    def image_path(self, index: int) -> str:
        """Path of an image."""
        return self.dataset.get_data_info(index)['img_path']

    def input_size(self) -> tuple[int, int]:
        """Height and width that the network gets for the first image, after the test pipeline and the padding."""
        height, width = self.dataset[0]['inputs'].shape[-2:]
        preprocessor = self.cfg.model.get('data_preprocessor') or self.cfg.get('data_preprocessor') or {}
        divisor = preprocessor.get('pad_size_divisor') or 1
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def check_classes(self, names: Sequence[str], model: str) -> None:
        """Raise a ValueError where a model does not have the classes of the dataset, in their order."""
        problem = compare_classes(names, self.classes, checkpoint=model, where='test_dataloader.dataset of --data')
        if problem is not None:
            raise ValueError(problem)


def evaluate_predictor(
    predictor: Predicts,
    data: TestData,
    *,
    images: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Predict the images of a test dataset one by one and compute the metrics of its config.

    The figures are those of ``mmitpn test`` at a batch size of 1.

    Args:
        predictor: An eager model or an exported file.
        data: The dataset and its metrics.
        images: Only the first ones; None: all.
        progress: Is called with the number of finished images and of all.

    Returns:
        The metrics by name, as mmdet, mmseg or mmpretrain name them (``coco/bbox_mAP``, ``mIoU``).

    Raises:
        ValueError: If the model predicts nothing that the dataset's samples can take.
    """
    number = len(data.dataset) if images is None else min(images, len(data.dataset))
    settings = data.cfg.test_evaluator
    with DefaultScope.overwrite_default_scope(data.cfg.get('default_scope', 'mmengine')):
        if isinstance(settings, Mapping) and settings.get('metrics') is not None:  # as mmengine's runner does
            evaluator = EVALUATOR.build({'type': 'Evaluator', **settings})
        else:
            evaluator = Evaluator(settings)
        evaluator.dataset_meta = data.dataset.metainfo
        seen = []
        for index in range(number):
            sample = data.dataset[index]['data_samples']
            (result,) = predictor.predict(data.image_path(index), score=0)
            fill_sample(sample, result)
            evaluator.process(data_samples=[sample], data_batch=None)
            seen.append(sample.metainfo.get('img_id', index))
            if progress is not None:
                progress(index + 1, number)
        if number < len(data.dataset):
            for metric in evaluator.metrics:  # COCO's count objects of images that were never predicted as missed
                if hasattr(metric, 'img_ids'):
                    metric.img_ids = seen
        return {name: float(value) for name, value in evaluator.evaluate(number).items() if np.isscalar(value)}


def fill_sample(sample: Any, result: Result) -> None:
    """Write predictions into a data sample of mmdet, mmseg or mmpretrain, as its metrics read them.

    Args:
        sample: The data sample of the image, with its ground truth; changed in place.
        result: What was predicted for the image.
    """
    if 'boxes' in result.outputs:
        found = InstanceData(
            bboxes=torch.from_numpy(result.boxes),
            scores=torch.from_numpy(result.scores),
            labels=torch.from_numpy(result.labels),
        )
        if 'masks' in result.outputs:
            found.masks = torch.from_numpy(result.masks)
        sample.pred_instances = found
    if 'panoptic' in result.outputs:
        ids = np.full(result.panoptic.shape, len(result.classes), dtype=np.int64)  # no segment, as mmdet writes it
        for number, one in enumerate(result.segments_info):
            ids[result.panoptic == one['id']] = one['label'] + INSTANCE_OFFSET * number
        sample.pred_panoptic_seg = PixelData(sem_seg=torch.from_numpy(ids)[None])
    if 'semantic' in result.outputs:
        labels = torch.from_numpy(result.semantic)[None]
        name = 'data' if hasattr(sample, 'gt_sem_seg') else 'sem_seg'  # of mmseg, of mmdet
        sample.pred_sem_seg = PixelData(**{name: labels})
    if 'probabilities' in result.outputs:
        scores = torch.from_numpy(result.probabilities)
        sample.set_pred_score(scores).set_pred_label(scores.argmax())


def find_headline(metrics: Mapping[str, float]) -> tuple[str, float]:
    """The metric that is shown: what it is called, and its value in points (0 to 100).

    Args:
        metrics: As of :func:`evaluate_predictor`.

    Raises:
        ValueError: If there is no metric.
    """
    for key, (words, factor) in HEADLINES.items():
        for name, value in metrics.items():
            if f'/{name}'.endswith(f'/{key}'):
                return words, factor * value
    if not metrics:
        raise ValueError('the test_evaluator of the config gives no metric; add one')
    name, value = next(iter(metrics.items()))
    return name.rpartition('/')[2], value
