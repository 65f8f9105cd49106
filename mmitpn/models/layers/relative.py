"""Global self-attention with relative positions: the main stage of iTPN."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .position import LearnedPositions, PositionFit

RELATIVE_POSITIONS = ('table', 'decomposed')
_POSITIONS = ('relative_position_bias_table', 'rel_pos_h', 'rel_pos_w')
# Bytes of bias (one value for each query, key and head) that are held at once.
_BIAS_BUDGET = 64 * 2**20


def resize_table(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a table of relative positions bicubically in fp32, by target size.

    Args:
        table: ``((2 * h - 1) * (2 * w - 1), heads)``, rows first.
        source: Grid ``(h, w)`` it was made for, in tokens.
        target: Grid wanted, in tokens.

    Returns:
        The table of the wanted grid; the given one where the two are the same.
    """
    if tuple(source) == tuple(target):
        return table
    (rows, columns), (height, width) = ((2 * side - 1 for side in grid) for grid in (source, target))
    maps = table.float().T.reshape(1, -1, rows, columns)
    maps = F.interpolate(maps, size=(height, width), mode='bicubic', align_corners=False)
    return maps[0].flatten(1).T


class RelativeAttention(LearnedPositions):
    """Self-attention with biases on all three projections and, if asked, relative positions.

    A bias for every pair of positions is as large as the scores themselves. It is made for as many rows of queries at
    once as fit 64 MB, and made again in the backward pass where that is not all of them.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads; scores are scaled by ``1 / sqrt(dim / num_heads)``.
        relative_position: None; ``'table'``: one learned value for each offset and head (Swin's form, iTPN with CLIP
            supervision and in segmentation); ``'decomposed'``: queries times learned vectors for the vertical and
            the horizontal offset (ViTDet's form, iTPN-L CLIP in detection), unscaled queries, as in the released code.
        window: Side in tokens of the square grid that the learned positions are for. For other grids tables are
            resized bicubically and vectors linearly; the original stops with an error on a table of another size.
        follow_file: Learned positions of a loaded file stay as they are, and the window becomes the file's. False:
            they are resized to ``window`` when they are loaded.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        relative_position: str | None = None,
        window: int = 14,
        follow_file: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position = relative_position
        self.window = window
        self.follow_file = follow_file
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        if relative_position == 'table':
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        elif relative_position == 'decomposed':
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * window - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * window - 1, dim // num_heads))

    def fit_positions(self, name: str, shape: Sequence[int]) -> PositionFit | None:
        """See :class:`LearnedPositions`."""
        if name not in _POSITIONS or len(shape) != 2 or shape[1] != getattr(self, name).shape[1]:
            return None
        table = name == _POSITIONS[0]
        side = isqrt(shape[0]) if table else shape[0]  # 2 * window - 1
        if side % 2 == 0 or (table and side * side != shape[0]):
            return None
        return PositionFit(self.follow_file, (side + 1) // 2, self.window)

    def adopt_grid(self, name: str, side: int) -> None:
        """See :class:`LearnedPositions`."""
        del name
        self.window = side

    def resize_positions(self, name: str, value: Tensor, side: int) -> Tensor:
        """See :class:`LearnedPositions`."""
        if name == _POSITIONS[0]:
            return resize_table(value, (side, side), (self.window, self.window))
        return _vectors(value, self.window)

    def position_setting(self, side: int) -> str:
        """See :class:`LearnedPositions`."""
        return f'relative_window={side}'

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, H, W, C)``."""
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each B, heads, N, C / heads
        if self.relative_position is None:
            x = F.scaled_dot_product_attention(query, key, value)
        else:
            x = self._attend(query, key, value, (height, width))
        return self.proj(x.transpose(1, 2).reshape(batch, height, width, dim))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        height, width = grid
        vertical, horizontal = self._positions(grid)
        samples = len(query) if self.relative_position == 'decomposed' else 1
        row = samples * self.num_heads * width * height * width * query.element_size()
        rows = min(height, max(1, _BIAS_BUDGET // row))
        if rows == height:
            return self._attend_rows(query, key, value, vertical, horizontal, 0, grid)
        outs = []
        for start in range(0, height, rows):
            part = query[:, :, start * width : (start + rows) * width]
            arguments = (part, key, value, vertical, horizontal, start, grid)
            if torch.is_grad_enabled():
                outs.append(checkpoint(self._attend_rows, *arguments, use_reentrant=False))
            else:
                outs.append(self._attend_rows(*arguments))
        return torch.cat(outs, dim=2)

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The learned values for this grid: a table ``(heads, 2 H - 1, 2 W - 1)`` and nothing, or two of vectors."""
        height, width = grid
        if self.relative_position == 'table':
            table = resize_table(self.relative_position_bias_table, (self.window, self.window), grid)
            return table.T.reshape(-1, 2 * height - 1, 2 * width - 1), table.new_empty(0)
        return _vectors(self.rel_pos_h, height), _vectors(self.rel_pos_w, width)

    def _attend_rows(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        vertical: Tensor,
        horizontal: Tensor,
        start: int,
        grid: tuple[int, int],
    ) -> Tensor:
        """Attention of the queries of some rows of the grid, from row ``start`` on."""
        height, width = grid
        count = query.shape[2] // width
        ups = _offsets(count, height, query.device) + start  # query row, key row
        overs = _offsets(width, width, query.device)
        if self.relative_position == 'table':
            bias = vertical[
                :, ups[:, None, :, None], overs[None, :, None, :]
            ]  # heads, row, column, key row, key column
            bias = bias.reshape(1, -1, count * width, height * width)
        else:
            maps = query.unflatten(2, (count, width))  # B, heads, row, column, channel
            up = torch.einsum('bnhwc,hkc->bnhwk', maps, vertical[ups].to(maps.dtype))
            over = torch.einsum('bnhwc,wkc->bnhwk', maps, horizontal[overs].to(maps.dtype))
            bias = (up[..., :, None] + over[..., None, :]).flatten(2, 3).flatten(3)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))


def _vectors(vectors: Tensor, side: int) -> Tensor:
    """The vectors of all offsets along a side: ``(2 * side - 1, C)``."""
    if len(vectors) == 2 * side - 1:
        return vectors
    return F.interpolate(vectors.float().T[None], size=2 * side - 1, mode='linear')[0].T


def _offsets(queries: int, keys: int, device: torch.device) -> Tensor:
    """Index of the offset query - key, the largest negative one being 0: ``(queries, keys)``."""
    return torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device) + keys - 1
