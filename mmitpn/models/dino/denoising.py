"""Contrastive denoising of DINO: noised copies of the ground truth as additional queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from mmdet.models.layers import inverse_sigmoid
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from torch import Tensor, nn

from .matching import BoxTargets


class ContrastiveQueries(NamedTuple):
    """Denoising queries of a batch: groups of positive and negative copies of N objects, ``D = groups * 2 * N``.

    Attributes:
        content: ``(B, D, C)``, 0 on padding.
        boxes: Logits of boxes (cx, cy, w, h), ``(B, D, 4)``, 0 on padding.
        attention_mask: ``(D + Q, D + Q)`` bool, True where a query must not attend. Denoising queries come first.
        groups: Number of groups.
    """

    content: Tensor
    boxes: Tensor
    attention_mask: Tensor
    groups: int


class ContrastiveDenoising(nn.Module):
    """DINO's denoising queries (arXiv 2203.03605, 3.3), with the settings and parameters of mmdet's generator.

    The random numbers of all images are drawn at once, for padding too, so that no step waits for a GPU.

    Args:
        label_embedding: Embeds the classes.
        num_queries: Number of queries that are matched to objects.
        label_noise_scale: A label changes with half this probability.
        box_noise_scale: Corners of positive queries move by at most half of width and height times this number, those
            of negative queries by at most twice as much.
        group_cfg: ``dict(dynamic=True, num_dn_queries=100)``: as many groups as give this number of queries at most,
            and at least one; ``dict(dynamic=False, num_groups=5)``: always this number of groups.
    """

    def __init__(
        self,
        label_embedding: nn.Embedding,
        num_queries: int,
        *,
        label_noise_scale: float = 0.5,
        box_noise_scale: float = 1.0,
        group_cfg: Mapping | None = None,
    ) -> None:
        super().__init__()
        settings = group_cfg or {}
        self.label_embedding = label_embedding
        self.num_queries = num_queries
        self.label_noise_scale = label_noise_scale
        self.box_noise_scale = box_noise_scale
        self.num_dn_queries = settings.get('num_dn_queries', 100) if settings.get('dynamic', True) else None
        self.num_groups = settings.get('num_groups')

    def groups_for(self, most_objects: int) -> int:
        """Number of groups for a batch with at most this number of objects in an image."""
        if self.num_dn_queries is None:
            return self.num_groups
        return max(self.num_dn_queries // most_objects, 1)

    def forward(self, targets: BoxTargets) -> ContrastiveQueries | None:
        """Denoising queries of a batch; None without objects."""
        if targets.empty:
            return None
        batch, most = targets.labels.shape
        groups = self.groups_for(most)
        valid = targets.valid[:, None].expand(-1, 2 * groups, -1).flatten(1, 2)[..., None]
        labels = self.add_label_noise(targets.labels[:, None].expand(-1, 2 * groups, -1))
        boxes = self.add_box_noise(targets.boxes[:, None, None].expand(-1, groups, 2, -1, -1))
        boxes = inverse_sigmoid(boxes.reshape(batch, -1, 4), eps=1e-3)
        content = self.label_embedding(labels.flatten(1))
        return ContrastiveQueries(
            content * valid, boxes * valid, self.attention_mask(groups, 2 * most, boxes.device), groups
        )

    def add_label_noise(self, labels: Tensor) -> Tensor:
        """Labels of which some are random."""
        changed = torch.rand(labels.shape, device=labels.device) < self.label_noise_scale * 0.5
        return torch.where(changed, torch.randint_like(labels, self.label_embedding.num_embeddings), labels)

    def add_box_noise(self, boxes: Tensor) -> Tensor:
        """Boxes ``(B, groups, 2, N, 4)`` (cx, cy, w, h) with moved corners: positive, then negative copies."""
        sign = torch.randint_like(boxes, 2) * 2.0 - 1.0
        distance = torch.rand_like(boxes)
        distance = torch.cat((distance[:, :, :1], distance[:, :, 1:] + 1.0), 2)
        reach = boxes[..., 2:].repeat(1, 1, 1, 1, 2) * self.box_noise_scale / 2
        corners = bbox_cxcywh_to_xyxy(boxes) + sign * distance * reach
        return bbox_xyxy_to_cxcywh(corners.clamp(min=0.0, max=1.0))

    def attention_mask(self, groups: int, size: int, device: torch.device) -> Tensor:
        """Groups of ``size`` queries see themselves and the matched queries, which see no denoising query."""
        number = groups * size
        index = torch.arange(number + self.num_queries, device=device)
        group = torch.where(index < number, index // size, -1)
        return (group[None] != group[:, None]) & (group[None] >= 0)
