"""Transforms that mmcv and mmdet lack, or that mmdet makes depend on a package in no index."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from ..registry import TRANSFORMS
from ..utils import quiet_imports, rgb2id

_NOT_HANDLED = ('gt_keypoints', 'proposals')


@TRANSFORMS.register_module()
class RandomTranspose(BaseTransform):
    """Swap height and width of an image and of its labels: with the flips, all eight rotations and reflections.

    For images without a natural upright. Place it before the resizing. Modified keys: ``img`` (H, W, C) to (W, H, C),
    ``img_shape``, ``gt_bboxes``, ``gt_masks``, ``gt_seg_map`` and ``homography_matrix``, each where it is there.

    Args:
        prob: Fraction of the images that are transposed, from 0 to 1.

    Raises:
        ValueError: If ``prob`` is out of range.
        TypeError: If the image has labels that this does not transpose (key points, proposals, rotated boxes).
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must be from 0 to 1, but got {prob!r}')
        self.prob = prob

    @cache_randomness
    def _chosen(self) -> bool:
        """Whether this image is transposed. Drawn from numpy's global state, which mmengine seeds in each worker."""
        return bool(np.random.rand() < self.prob)  # noqa: NPY002 - as the transforms of mmcv and mmdet draw

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Transpose the image of a pipeline's results, or leave it.

        Args:
            results: The pipeline's dict of the image.

        Returns:
            dict: The same, changed in place.
        """
        if not self._chosen():
            return results
        unknown = [key for key in _NOT_HANDLED if results.get(key) is not None]
        if unknown:
            raise TypeError(f'RandomTranspose does not transpose {", ".join(unknown)}; leave RandomTranspose out')
        results['img'] = np.ascontiguousarray(results['img'].swapaxes(0, 1))
        results['img_shape'] = results['img'].shape[:2]
        if results.get('gt_bboxes') is not None:
            results['gt_bboxes'] = _transposed_boxes(results['gt_bboxes'])
        if results.get('gt_masks') is not None:
            results['gt_masks'] = _transposed_masks(results['gt_masks'])
        if results.get('gt_seg_map') is not None:
            results['gt_seg_map'] = np.ascontiguousarray(results['gt_seg_map'].swapaxes(0, 1))
        swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=np.float32)
        before = results.get('homography_matrix')
        results['homography_matrix'] = swap if before is None else swap @ before
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'


def _transposed_boxes(boxes: Any) -> Any:
    """Boxes x1, y1, x2, y2 with x and y swapped: mmdet's HorizontalBoxes, or an array (N, 4)."""
    if getattr(boxes, 'box_dim', None) == 4:
        return type(boxes)(boxes.tensor[:, [1, 0, 3, 2]])
    if isinstance(boxes, np.ndarray) and boxes.shape[-1] == 4:
        return boxes[:, [1, 0, 3, 2]]
    raise TypeError(f'RandomTranspose takes boxes x1, y1, x2, y2, but got {type(boxes).__name__}; remove it')


def _transposed_masks(masks: Any) -> Any:
    """Masks (BitmapMasks or PolygonMasks of mmdet) with x and y swapped."""
    if isinstance(masks.masks, np.ndarray):
        swapped: Any = np.ascontiguousarray(masks.masks.swapaxes(1, 2))
    else:
        swapped = [[part.reshape(-1, 2)[:, ::-1].reshape(-1) for part in parts] for parts in masks.masks]
    return type(masks)(swapped, masks.width, masks.height)


if find_spec('mmdet') is not None:
    with quiet_imports():
        from mmdet.datasets.transforms import LoadAnnotations
        from mmdet.datasets.transforms import LoadPanopticAnnotations as MMDetLoadPanopticAnnotations

    @TRANSFORMS.register_module()
    class LoadPanopticAnnotations(MMDetLoadPanopticAnnotations):
        """mmdet's transform of this name without panopticapi, which mmdet's needs for the formula of a segment's id.

        Args:
            with_bbox: Load the boxes of things.
            with_label: Load their labels.
            with_mask: Load their masks.
            with_seg: Load the map of labels.
            **settings: As in mmdet.
        """

        def __init__(
            self,
            with_bbox: bool = True,
            with_label: bool = True,
            with_mask: bool = True,
            with_seg: bool = True,
            **settings: Any,
        ) -> None:
            LoadAnnotations.__init__(
                self, with_bbox=with_bbox, with_label=with_label, with_mask=with_mask, with_seg=with_seg, **settings
            )
            self.rgb2id = rgb2id
