"""The generated dataset, and the samplers, dataset wrapper and transforms that mmengine, mmcv and mmdet lack."""

from __future__ import annotations

from importlib.util import find_spec

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
    'generate_images',
    'generate_shapes',
]

if find_spec('mmcv') is not None:
    from .samplers import SeededInfiniteSampler, SeededSampler, SkippingBatchSampler
    from .seeded_dataset import SeededDataset
    from .transforms import RandomTranspose

    __all__ += ['RandomTranspose', 'SeededDataset', 'SeededInfiniteSampler', 'SeededSampler', 'SkippingBatchSampler']

if find_spec('mmdet') is not None:
    from .transforms import LoadPanopticAnnotations

    __all__ += ['LoadPanopticAnnotations']
