"""Whether the pictures of a model that learns from masks are loaded with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...config_types import is_type, type_name
from .data_sets import DataSet

_NEEDS_MASKS = ('MaskDINOHead', 'Mask2FormerHead', 'MaskFormerHead')


def check_masks(model: Mapping[str, Any], data_sets: Sequence[DataSet]) -> None:
    """Look for masks, and for the map of stuff, in the training pipeline of MaskDINO and its kind.

    Args:
        model: The config's model.
        data_sets: The config's data sets.

    Raises:
        ValueError: If annotations are loaded without what the head learns from.
    """
    head = model.get('panoptic_head')
    if not isinstance(head, Mapping) or not is_type(head, *_NEEDS_MASKS):
        return
    stuff = head.get('num_stuff_classes') or 0
    for data_set in data_sets:
        pipeline = data_set.cfg.get('pipeline')
        if data_set.split != 'train' or not isinstance(pipeline, Sequence):
            continue
        steps = [step for step in pipeline if isinstance(step, Mapping)]
        loading = {type_name(step): step for step in steps}
        panoptic, plain = loading.get('LoadPanopticAnnotations'), loading.get('LoadAnnotations')
        if panoptic is None and plain is None:
            continue  # a transform of the user's own
        masks = panoptic.get('with_mask', True) if panoptic is not None else plain.get('with_mask', False)
        if not masks:
            raise ValueError(
                f'{data_set.where}.pipeline loads no masks, but {type_name(head)} learns from them (box_start='
                f'{head.get("box_start", "mask2box")!r} makes its first boxes from them too): set with_mask=True in'
                ' LoadAnnotations, and pad_mask=True in the data preprocessor'
            )
        if stuff and panoptic is None and not plain.get('with_seg', False):
            raise ValueError(
                f'{data_set.where}.pipeline loads no map of stuff, but {type_name(head)} has num_stuff_classes='
                f'{stuff}: use a CocoPanopticDataset with mmitpn.LoadPanopticAnnotations, or num_stuff_classes=0'
            )
