"""Masks at the picture's own size, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor

# Values of masks at full size that are held at once.
_VALUES = 2**24


def upsampled(masks: Tensor, meta: Mapping, *, rescale: bool) -> Iterator[tuple[slice, Tensor]]:
    """Bring mask logits to the size of the picture.

    Args:
        masks: ``(n, H / 4, W / 4)``, of the padded picture.
        meta: ``batch_input_shape``, ``img_shape`` (without padding) and ``ori_shape`` of the picture.
        rescale: To the size before resizing (``ori_shape``), else to ``img_shape``.

    Yields:
        Which masks, and their logits ``(k, h, w)``: upsampled to the padded picture, cut, resized, each bilinear.
    """
    height, width = meta['img_shape'][:2]
    padded = tuple(meta.get('batch_input_shape', (height, width)))
    size = tuple(meta['ori_shape'][:2]) if rescale else (height, width)
    step = max(1, _VALUES // max(padded[0] * padded[1], size[0] * size[1]))
    for first in range(0, len(masks), step):
        some = slice(first, min(first + step, len(masks)))
        large = F.interpolate(masks[some, None], size=padded, mode='bilinear', align_corners=False)
        large = large[:, :, :height, :width]
        if size != (height, width):
            large = F.interpolate(large, size=size, mode='bilinear', align_corners=False)
        yield some, large[:, 0]
