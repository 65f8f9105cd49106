"""Maps of several strides as one sequence of positions: their sizes, padding, coordinates and proposals.

Sizes are Python numbers, so that nothing here waits for a GPU, and a compiler can follow it with sizes that change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmdet.models.layers import SinePositionalEncoding
from torch import Tensor

from mmitpn.models.layers import is_dynamic
from mmitpn.utils import constant_per_size

# Width and height of a proposal on the first level, in fractions of the image; they double with each next level.
# Proposals closer to a border than the margin are invalid (Deformable DETR, arXiv 2010.04159).
_PROPOSAL_SIZE, _PROPOSAL_MARGIN = 0.05, 0.01

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FeatureLevels:
    """The levels of a deformable transformer, flattened one after the other to N positions.

    Attributes:
        shapes: Height and width of each level.
        device: Device of all tensors.
        padding_mask: ``(B, N)``, True on padding; None without padding.
        valid_size: Width and height of the part of each level that is not padding, in cells, ``(B, levels, 2)``. None:
            coordinates are fractions of the whole level, as without padding.
    """

    shapes: Shapes
    device: torch.device
    padding_mask: Tensor | None = None
    valid_size: Tensor | None = None

    @classmethod
    def of(
        cls, maps: Sequence[Tensor], padding_mask: Tensor | None = None, *, fractions_of_padded: bool = False
    ) -> FeatureLevels:
        """Levels of maps.

        Args:
            maps: ``(B, C, H_i, W_i)``.
            padding_mask: ``(B, H, W)`` bool, True where an image of the batch is padding (below and to the right of
                it), at any resolution; None without padding. See :func:`make_padding_mask`.
            fractions_of_padded: Coordinates are fractions of the padded image (MaskDINO), not of the image (DINO).
        """
        shapes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        if padding_mask is None:
            return cls(shapes, maps[0].device)
        values = padding_mask[:, None].float()
        masks = [F.interpolate(values, size=shape)[:, 0] > 0 for shape in shapes]
        flat = torch.cat([mask.flatten(1) for mask in masks], 1)
        if fractions_of_padded:
            return cls(shapes, maps[0].device, flat)
        valid = [torch.stack(((~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)), -1) for mask in masks]
        return cls(shapes, maps[0].device, flat, torch.stack(valid, 1).float())

    @property
    def counts(self) -> list[int]:
        """Number of positions of each level."""
        return [height * width for height, width in self.shapes]

    @property
    def num_positions(self) -> int:
        """N."""
        return sum(self.counts)

    @staticmethod
    def flatten(maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, C, H_i, W_i)`` to positions ``(B, N, C)``."""
        return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)

    def unflatten(self, x: Tensor) -> list[Tensor]:
        """Positions ``(B, N, C)`` to maps ``(B, C, H_i, W_i)``."""
        parts = x.split(self.counts, 1)
        return [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @property
    def sizes(self) -> Tensor:
        """Width and height of each level, ``(levels, 2)``."""
        return level_sizes(self.shapes, self.device)

    @property
    def valid_ratios(self) -> Tensor:
        """Fraction of each level (x, y) that is not padding, ``(B or 1, levels, 2)``."""
        return torch.ones_like(self.sizes)[None] if self.valid_size is None else self.valid_size / self.sizes

    def reference_points(self) -> Tensor:
        """The center of each position on every level, ``(B or 1, N, levels, 2)``, in fractions of the padded levels."""
        cells, level = _cells(self.shapes, self.device)
        valid = (self.valid_ratios * self.sizes)[:, level]  # B or 1, N, 2
        return ((cells + 0.5) / valid)[:, :, None] * self.valid_ratios[:, None]

    def proposals(self) -> tuple[Tensor, Tensor]:
        """One proposal box for each position.

        Returns:
            Logits of boxes (cx, cy, w, h) in fractions of the image, ``(B or 1, N, 4)``, ``inf`` where invalid; and the
            valid positions, ``(B or 1, N, 1)``: neither padding nor too close to a border.
        """
        cells, level = _cells(self.shapes, self.device)
        valid_size = self.sizes[None] if self.valid_size is None else self.valid_size
        centers = (cells + 0.5) / valid_size[:, level]
        side = (_PROPOSAL_SIZE * 2.0**level)[:, None].expand(-1, 2)
        boxes = torch.cat((centers, side.expand_as(centers)), -1)
        valid = ((boxes > _PROPOSAL_MARGIN) & (boxes < 1 - _PROPOSAL_MARGIN)).all(-1, keepdim=True)
        if self.padding_mask is not None:
            valid = valid & ~self.padding_mask.unsqueeze(-1)
        return torch.log(boxes / (1 - boxes)).masked_fill(~valid, float('inf')), valid

    def position_embedding(self, encoding: SinePositionalEncoding) -> Tensor:
        """Embeddings of all positions, ``(B or 1, N, 2 * num_feats)``: the encoding applied to the mask of each level.

        Args:
            encoding: Settings of the embedding.
        """
        cells, level = _cells(self.shapes, self.device)
        if self.valid_size is None:
            index, last = cells + 1, self.sizes[level]
        else:
            size = self.valid_size[:, level]
            inside = (cells < size).flip(-1)  # of the other direction: elsewhere a row or column is all padding
            index, last = torch.minimum(cells + 1, size) * inside, size * inside
        scale = 1.0
        if encoding.normalize:
            index, scale = (index + encoding.offset) / (last + encoding.eps), encoding.scale
        embedding = sine_embedding(
            index.flip(-1), encoding.num_feats, temperature=encoding.temperature, scale=scale
        )  # y, then x
        return embedding if embedding.dim() == 3 else embedding[None]

    def level_embedding(self, weights: Tensor) -> Tensor:
        """The embedding ``(levels, C)`` of its level for each position, ``(N, C)``."""
        return torch.cat([row.expand(count, -1) for row, count in zip(weights, self.counts, strict=True)])


@constant_per_size
def level_sizes(shapes: Shapes, device: torch.device) -> Tensor:
    """Width and height of each level, ``(levels, 2)``. Filled in on the device: nothing is copied there."""
    numbers = [
        torch.full((1,), side, dtype=torch.float32, device=device)
        for height, width in shapes
        for side in (width, height)
    ]
    return torch.cat(numbers).view(-1, 2)


@constant_per_size
def _cells(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Column and row of each position on its level, ``(N, 2)`` fp32; and the index of the level, ``(N,)``."""
    cells, levels = [], []
    for level, (height, width) in enumerate(shapes):
        x = torch.arange(width, device=device, dtype=torch.float32).expand(height, width)
        y = torch.arange(height, device=device, dtype=torch.float32)[:, None].expand(height, width)
        cells.append(torch.stack((x, y), -1).flatten(0, 1))
        levels.append(torch.full((height * width,), level, device=device))
    return torch.cat(cells), torch.cat(levels)


def count_padded_queries(num_queries: int, num_positions: int) -> int:
    """Number of queries without a position, in an image that has fewer positions than queries are selected.

    A graph that is exported for any size has none: it is made for images with enough positions.
    """
    if torch.compiler.is_exporting() and is_dynamic(num_positions):
        torch._check(num_positions >= num_queries)
        return 0
    return max(num_queries - num_positions, 0)


def make_padding_mask(
    shapes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device
) -> Tensor | None:
    """Where the images of a batch are padded.

    Args:
        shapes: Height and width of each image.
        padded: Height and width of the batch.
        device: Device of the mask.

    Returns:
        ``(B, H, W)`` bool, True on padding; None if no image is padded.
    """
    height, width = padded
    if all(tuple(shape[:2]) == (height, width) for shape in shapes):
        return None
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    return torch.stack([(y >= shape[0]) | (x >= shape[1]) for shape in shapes])


def sine_embedding(
    coordinates: Tensor, num_feats: int, *, temperature: float = 10000.0, scale: float = 2 * math.pi
) -> Tensor:
    """Embed coordinates by sines and cosines, in fp32 (DETR, arXiv 2005.12872; DAB-DETR, arXiv 2201.12329).

    Args:
        coordinates: ``(..., n)``.
        num_feats: Number of features per coordinate, even.
        temperature: Approximate ratio of the longest to the shortest wavelength.
        scale: Factor of the coordinates.

    Returns:
        ``(..., n * num_feats)``: for each coordinate sine and cosine alternate, shortest wavelength first.
    """
    waves = torch.arange(num_feats // 2, dtype=torch.float32, device=coordinates.device)
    waves = temperature ** (2 * waves / num_feats)
    angles = coordinates.float().unsqueeze(-1) * scale / waves
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)
