"""The pre-training network of the authors' files, to compare its predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmitpn.checkpoint import identify, load_pretrained, read_checkpoint
from mmitpn.models.selfsup import ITPNPretrain, RandomTeacher

from .reference import build_reference_case


class PretrainCase(nn.Module):
    """Images and masks to the predictions of the masked patches.

    Args:
        model: The network.
    """

    def __init__(self, model: ITPNPretrain) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` and masks ``(B, h, w)``, True where masked, to ``(masked patches, channels)``."""
        return self.model.head(self.model.backbone, self.model.neck, images, masks)['tokens'][masks]


def build_pretrain_case(checkpoint: str | os.PathLike | Mapping[str, Any], *, form: str = 'fast') -> PretrainCase:
    """Build Fast-iTPN's pre-training network with its weights.

    Args:
        checkpoint: Weights in the authors' pre-training layout: a dict of tensors, wrapped or raw, or a file.
        form: ``'fast'``; see :class:`mmitpn.ITPNPretrain`.

    Returns:
        The network, in evaluation mode and fp32; its teacher is random.

    Raises:
        ValueError: If the weights are no backbone with its pyramid, or the prediction layers are not in them.
    """
    content = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    parts = build_reference_case('pretrain', content)
    last = identify(content).body.get('lm_head.weight')
    if last is None:
        raise ValueError('the weights have no lm_head: they are not those of a pre-training network')
    model = ITPNPretrain(parts.backbone, parts.neck, form=form, teacher=RandomTeacher(len(last)))
    load_pretrained(model, content)
    return PretrainCase(model.float().eval())
