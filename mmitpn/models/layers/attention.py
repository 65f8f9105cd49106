"""Global multi-head self-attention: Fast-iTPN's, and iTPN's with relative positions."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import maybe_checkpoint
from .pos_embed import resample_rel_pos, resample_rel_pos_table
from .state_dict_adapter import StateDictAdapter, WeightFit

RELATIVE_POSITIONS = ('table', 'decomposed')
_TABLE, _VERTICAL, _HORIZONTAL = 'relative_position_bias_table', 'rel_pos_h', 'rel_pos_w'
# Bytes of bias (one value for each query, key and head) that are computed at once.
_BIAS_BUDGET = 64 * 2**20


class Attention(nn.Module):
    """Self-attention with biases on queries and values only and no relative position.

    The three projections of the released weights are one matrix here. ``scaled_dot_product_attention`` keeps the
    N x N scores out of memory.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads; scores are scaled by ``1 / sqrt(dim / num_heads)``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, C)``, or any ``(B, ..., C)``, to the same shape."""
        out = F.scaled_dot_product_attention(*self.project(x.flatten(1, -2)))
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(B, heads, N, C / heads)`` of ``(B, N, C)``."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def sub_ln_layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers whose initial weights sub-LN scales, see :func:`initialize_weights`."""
        return (self.proj,)

    def reset_projections(self, weight_init: str, gain: float) -> None:
        """Start the biases at 0 and, with ``'xavier'``, the three projections as three matrices; see there."""
        nn.init.zeros_(self.q_bias)
        nn.init.zeros_(self.v_bias)
        if weight_init == 'xavier':
            query, key, value = self.qkv.weight.chunk(3)
            nn.init.xavier_normal_(query)
            nn.init.xavier_normal_(key)
            nn.init.xavier_normal_(value, gain=gain)


class RelativeAttention(StateDictAdapter):
    """Self-attention with biases on all three projections and, if asked, relative positions: iTPN's main stage.

    A bias for every pair of positions is as large as the scores themselves. It is computed for as many rows of queries
    at once as fit 64 MB, and again in the backward pass where that is not all of them.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads; scores are scaled by ``1 / sqrt(dim / num_heads)``.
        relative_position: None; ``'table'``: one learned value for each offset and head (as in Swin; iTPN with CLIP
            supervision and in segmentation); ``'decomposed'``: queries times learned vectors for the vertical and
            the horizontal offset (as in ViTDet; iTPN-L CLIP in detection), unscaled queries, as in the released code.
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
        samples = query.shape[0] if self.relative_position == 'decomposed' else 1
        row = samples * self.num_heads * width * height * width * query.element_size()
        rows = min(height, max(1, _BIAS_BUDGET // row))
        if rows == height:
            return self._attend_rows(query, key, value, vertical, horizontal, 0, grid)
        outs = []
        for start in range(0, height, rows):
            band = query[:, :, start * width : (start + rows) * width]
            arguments = (band, key, value, vertical, horizontal, start, grid)
            outs.append(maybe_checkpoint(self._attend_rows, *arguments, recompute=True))
        return torch.cat(outs, dim=2)

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The learned values for this grid: a table ``(heads, 2 H - 1, 2 W - 1)`` and nothing, or two of vectors."""
        height, width = grid
        if self.relative_position == 'table':
            table = resample_rel_pos_table(self.relative_position_bias_table, (self.window, self.window), grid)
            return table.T.reshape(-1, 2 * height - 1, 2 * width - 1), table.new_empty(0)
        return resample_rel_pos(self.rel_pos_h, height), resample_rel_pos(self.rel_pos_w, width)

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
            ]  # heads, query row, column, key row, column
            bias = bias.reshape(1, -1, count * width, height * width)
        else:
            maps = query.unflatten(2, (count, width))  # B, heads, row, column, channel
            up = torch.einsum('bnhwc,hkc->bnhwk', maps, vertical[ups].to(maps.dtype))
            over = torch.einsum('bnhwc,wkc->bnhwk', maps, horizontal[overs].to(maps.dtype))
            bias = (up[..., :, None] + over[..., None, :]).flatten(2, 3).flatten(3)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))

    def sub_ln_layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers whose initial weights sub-LN scales, see :func:`initialize_weights`."""
        return (self.proj,)

    def reset_positions(self) -> None:
        """Give decomposed positions their starting values; a table starts at 0."""
        if self.relative_position == 'decomposed':
            nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
            nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    # --- positions of a file, see StateDictAdapter -----------------------------------------------------------------

    def fit_weight(self, name: str, shape: Sequence[int]) -> WeightFit | None:
        """See :class:`StateDictAdapter`."""
        if name not in (_TABLE, _VERTICAL, _HORIZONTAL) or len(shape) != 2 or shape[1] != getattr(self, name).shape[1]:
            return None
        side = isqrt(shape[0]) if name == _TABLE else shape[0]  # 2 * window - 1
        if side % 2 == 0 or (name == _TABLE and side * side != shape[0]):
            return None
        window = (side + 1) // 2
        return WeightFit(window, self.window, f'relative_window={window}', adopted=self.follow_file)

    def adopt_weight(self, name: str, fit: WeightFit) -> None:
        """See :class:`StateDictAdapter`."""
        del name
        self.window = fit.source

    def adapt_weight(self, name: str, value: Tensor, fit: WeightFit) -> Tensor:
        """See :class:`StateDictAdapter`."""
        if name == _TABLE:
            return resample_rel_pos_table(value, (fit.source, fit.source), (self.window, self.window))
        return resample_rel_pos(value, self.window)


def _offsets(queries: int, keys: int, device: torch.device) -> Tensor:
    """Index of the offset query - key, the largest negative one being 0: ``(queries, keys)``."""
    return torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device) + keys - 1
