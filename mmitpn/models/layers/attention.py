"""Global multi-head self-attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .parts import in_parts, part_rows

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Self-attention with biases on queries and values only and no relative position.

    The three projections of the released weights lie in one matrix here. ``scaled_dot_product_attention`` keeps the
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
        self.gathering_offset: nn.Parameter | None = None

    def set_gathering_offset(self, number: int) -> None:
        """Give ``number`` gathering tokens a learned offset of their keys and values, 0 at first; 0 takes it away."""
        shape = (2, self.num_heads, number, self.proj.in_features // self.num_heads)
        if number == 0:
            self.gathering_offset = None
        elif self.gathering_offset is None or self.gathering_offset.shape != shape:
            self.gathering_offset = nn.Parameter(self.q_bias.new_zeros(shape))

    def forward(self, x: Tensor, attend: Attend = F.scaled_dot_product_attention) -> Tensor:
        """``(B, N, C)``, or any ``(B, ..., C)``, to the same shape.

        Args:
            x: The tokens.
            attend: What makes one tensor ``(B, heads, N, C / heads)`` of the queries, keys and values of that shape.
        """
        shape = x.shape
        x = attend(*self.project(x.flatten(1, -2)))
        return self.proj(x.transpose(1, 2).reshape(shape))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``(B, heads, N, C / heads)`` of ``(B, N, C)``."""
        batch, tokens, dim = x.shape
        shape = (3, self.num_heads, dim // self.num_heads)
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))

        def part(x: Tensor) -> Tensor:
            return F.linear(x, self.qkv.weight, bias).unflatten(-1, shape).permute(2, 0, 3, 1, 4)  # 3, B, heads, n, d

        if not in_parts(x):
            qkv = part(x)
            # A CPU's fused attention reads rows that lie together a tenth faster.
            return (qkv.contiguous() if x.device.type == 'cpu' else qkv).unbind(0)
        found = None
        step = part_rows(batch * 3 * dim)
        for first in range(0, tokens, step):
            rows = part(x[:, first : first + step])
            if found is None:
                found = rows.new_empty(3, batch, self.num_heads, tokens, shape[-1])
            found[:, :, :, first : first + step] = rows
        return found.unbind(0)
