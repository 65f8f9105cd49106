"""Data sets, the augmentations the hosts lack, and the checks before training."""

from __future__ import annotations

from importlib.util import find_spec

from .check import CocoSummary, check_coco_json, check_config
from .shapes import (
    SHAPES_CLASSES,
    SHAPES_PALETTE,
    SHAPES_STUFF,
    SHAPES_STUFF_PALETTE,
    generate_images,
    generate_shapes,
)

__all__ = [
    'SHAPES_CLASSES',
    'SHAPES_PALETTE',
    'SHAPES_STUFF',
    'SHAPES_STUFF_PALETTE',
    'CocoSummary',
    'check_coco_json',
    'check_config',
    'generate_images',
    'generate_shapes',
]

if find_spec('mmcv') is not None:
    from .draws import SeededInfiniteSampler, SeededSampler, SkippingBatchSampler
    from .seeded_dataset import SeededDataset
    from .transforms import RandomTranspose

    __all__ += ['RandomTranspose', 'SeededDataset', 'SeededInfiniteSampler', 'SeededSampler', 'SkippingBatchSampler']

if find_spec('mmdet') is not None:
    from .panoptic_loading import LoadPanopticAnnotations
    from .panoptic_metric import PanopticMetric

    __all__ += ['LoadPanopticAnnotations', 'PanopticMetric']
