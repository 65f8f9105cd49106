"""Denoising queries: noised copies of the objects, which the decoder learns to put right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import box_logits

DENOISING = ('seg', 'standard', 'no')


@dataclass(frozen=True)
class Noised:
    """Noised objects of a batch, in ``groups`` groups of ``size`` queries a picture.

    Attributes:
        groups: How many times every object is there.
        size: Queries of a group: the objects of the fullest picture.
        labels: Labels after the noise, of all objects in all groups, ``(n,)``.
        boxes: Box logits after the noise, ``(n, 4)``.
        picture: Which picture each belongs to, ``(n,)``.
        query: Which query of its picture it is, ``(n,)``.
        true_labels: Labels before the noise.
    """

    groups: int
    size: int
    labels: Tensor
    boxes: Tensor
    picture: Tensor
    query: Tensor
    true_labels: Tensor

    @property
    def number(self) -> int:
        """Denoising queries of a picture."""
        return self.groups * self.size

    def scatter(self, values: Tensor, batch: int) -> Tensor:
        """Values ``(n, C)`` at the places of their queries, ``(batch, number, C)``, and 0 elsewhere."""
        out = values.new_zeros(batch, self.number, values.shape[-1])
        return out.index_put((self.picture, self.query), values)

    def attention_mask(self, matching: int) -> Tensor:
        """Who must not look at whom, ``(number + matching,) * 2``: denoising queries come first.

        A group sees itself and the matching queries; these see no denoising query (DN-DETR, arXiv 2203.01305).
        """
        count = self.number
        group = torch.arange(count + matching, device=self.labels.device) // self.size
        group[count:] = -1
        return (group[None] != group[:, None]) & (group[None] >= 0)


def add_noise(
    labels: Sequence[Tensor], boxes: Sequence[Tensor], *, num_queries: int, num_classes: int, noise_scale: float
) -> Noised | None:
    """Noise the objects of a batch, as the published code: plain, without negatives.

    Args:
        labels: Of each picture's objects, ``(k_i,)``.
        boxes: Theirs, ``(k_i, 4)`` (cx, cy, w, h) in fractions of the padded picture.
        num_queries: Groups are as many as give at most so many queries a picture.
        num_classes: Labels that noise may give.
        noise_scale: Half of it is the share of labels that are changed; centres move by up to so much of half the
            box, sides by up to so much of themselves.

    Returns:
        The noised objects, or None where there are none, or more than ``num_queries`` in one picture.
    """
    counts = [len(one) for one in labels]
    size = max(counts, default=0)
    groups = num_queries // size if size else 0
    if not groups:
        return None
    device = boxes[0].device
    true_labels = torch.cat(list(labels)).repeat(groups)
    true_boxes = torch.cat(list(boxes)).repeat(groups, 1)
    # The draws and their order are the published ones, so that a seed gives the same noise.
    changed = (torch.rand(len(true_labels), device=device) < noise_scale * 0.5).nonzero().flatten()
    noised = true_labels.scatter(0, changed, torch.randint_like(true_labels[changed], num_classes))
    reach = torch.cat((true_boxes[:, 2:] / 2, true_boxes[:, 2:]), 1) * noise_scale
    moved = true_boxes + (torch.rand_like(true_boxes) * 2 - 1) * reach
    picture = torch.cat([torch.full((count,), i, device=device) for i, count in enumerate(counts)]).repeat(groups)
    inside = torch.cat([torch.arange(count, device=device) for count in counts])
    query = (inside + size * torch.arange(groups, device=device)[:, None]).flatten()
    return Noised(groups, size, noised, box_logits(moved.clamp(0, 1)), picture, query, true_labels)
