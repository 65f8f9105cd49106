"""Panoptic annotations without panopticapi, which is in no package index."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.datasets.transforms import LoadPanopticAnnotations as HostLoading

from mmitpn.registry import TRANSFORMS


def segment_ids(pixels: np.ndarray) -> np.ndarray:
    """Numbers of segments, ``(h, w)`` int32, of a COCO panoptic PNG, ``(h, w, 3)`` RGB: R + 256 G + 65536 B."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


@TRANSFORMS.register_module()
class LoadPanopticAnnotations(HostLoading):
    """mmdet's transform, which asks for panopticapi for the sake of one formula.

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
        self.rgb2id = segment_ids
