"""MaskDINO's fusion head: predictions of the queries to instances, panoptic segments and label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.structures import InstanceData, PixelData

from mmitpn.models.mask_dino_postprocess import DEFAULTS, LayerOutputs, QueryPostprocessor
from mmitpn.registry import MODELS


@MODELS.register_module()
class MaskDINOFusionHead(BaseModule):
    """Post-processing of each of the three tasks (arXiv 2206.02777; IDEA-Research/MaskDINO).

    Masks are upsampled to full size a few at a time, and only those that are needed.

    Args:
        num_things_classes: Number of thing classes.
        num_stuff_classes: Number of stuff classes.
        test_cfg: The results to compute: ``instance_on`` (default True), ``panoptic_on`` and ``semantic_on`` (False).
            ``max_per_image`` (100): maximum number of instances per image. ``object_mask_thr`` (0.25): minimum score of
            a panoptic segment; ``iou_thr`` (0.8): minimum fraction of its mask that is not covered by others.
            ``temperature`` (0.06): of the softmax over sigmoid scores that weights segments and label maps; None: the
            scores themselves.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If ``test_cfg`` has an unknown setting, or switches off all results.
    """

    def __init__(
        self,
        num_things_classes: int = 80,
        num_stuff_classes: int = 0,
        *,
        test_cfg: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        unknown = set(test_cfg or {}) - set(DEFAULTS)
        if unknown:
            raise ValueError(f'test_cfg has {", ".join(sorted(unknown))}; allowed: {", ".join(DEFAULTS)}')
        self.test_cfg = {**DEFAULTS, **(test_cfg or {})}
        if not any(self.test_cfg[name] for name in ('instance_on', 'panoptic_on', 'semantic_on')):
            raise ValueError('test_cfg switches everything off: set instance_on, panoptic_on or semantic_on')
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_things_classes + num_stuff_classes
        self.postprocess = QueryPostprocessor(num_things_classes, self.num_classes, self.test_cfg)

    def predict(
        self, outputs: LayerOutputs, batch_data_samples: Sequence[Any], *, rescale: bool = True
    ) -> list[dict[str, Any]]:
        """Results of a batch.

        Args:
            outputs: Predictions of the last layer.
            batch_data_samples: One sample per image.
            rescale: Results in pixels of the image before resizing.

        Returns:
            One dict per image, with the results that ``test_cfg`` switches on: ``ins_results`` (``InstanceData``:
            bboxes, labels, scores, masks), ``pan_results`` (``PixelData``: ``sem_seg`` ``(1, h, w)``, class + 1000 *
            number of the thing, from 1; stuff has number 0, and pixels without a segment are ``num_things_classes +
            num_stuff_classes``), ``sem_results`` (``PixelData``: ``sem_seg`` ``(1, h, w)``).
        """
        results = []
        metas = [sample.metainfo for sample in batch_data_samples]
        for instances, panoptic, semantic in self.postprocess.predict(outputs, metas, rescale=rescale):
            result: dict[str, Any] = {}
            if instances is not None:
                result['ins_results'] = InstanceData(**instances._asdict())
            if panoptic is not None:
                result['pan_results'] = PixelData(sem_seg=panoptic[None])
            if semantic is not None:
                result['sem_results'] = PixelData(sem_seg=semantic[None])
            results.append(result)
        return results
