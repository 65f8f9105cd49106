"""Token gathering: attention in windows, and a few tokens per window that carry its content to all others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmitpn.utils import is_int

from ..layers import Attention
from .windows import WindowedTokens, WindowPartition


class TokenGathering:
    """Settings of token gathering.

    The paper (arXiv 2211.12735, 3.2) says that few gathering tokens replace global attention by attention in windows;
    the rest is our interpretation. There are as few windows as sides of at most ``window_size`` allow, all of one size,
    the smallest that covers the grid; what lies beyond the grid is padding, which is never attended to. The gathering
    tokens of a window stand for its ``num_tokens`` cells, see ``pool``. They need no parameters, any released
    checkpoint runs with them, and where the grid is one window the block is the global one, to the bit.

    Args:
        depth: Blocks of the main stage.
        window_size: Largest side of a window, in tokens of 16 pixels.
        num_tokens: Gathering tokens per window, at most ``window_size ** 2``; 0: windows do not see each other.
        global_blocks: Blocks of the main stage that keep global attention, from 0, or from -1 backwards.
        pool: How a cell becomes a gathering token. ``'mean'``: the means of its keys and of its values, which count in
            the softmax with the number of tokens they stand for (:class:`GatheringAttention`). ``'query'``: the means
            weighted by the attention of the window that attends to them
            (:class:`QueryGatheringAttention`).
        learned: Add an offset, 0 at first, to the gathering tokens' keys and values, for every windowed block: the
            backbone's ``blocks.N.attn.gathering_offset``.

    Raises:
        ValueError: If an argument is outside what is allowed.
    """

    def __init__(
        self,
        depth: int,
        *,
        window_size: int = 16,
        num_tokens: int = 4,
        global_blocks: Sequence[int] = (),
        pool: str = 'mean',
        learned: bool = False,
    ) -> None:
        if pool not in POOLS:
            raise ValueError(f'pool is {pool!r}; allowed: {", ".join(map(repr, POOLS))}')
        if not is_int(window_size) or window_size < 1:
            raise ValueError(f'window_size is {window_size!r}; allowed: integers from 1, in tokens')
        if not is_int(num_tokens) or not 0 <= num_tokens <= window_size**2:
            raise ValueError(
                f'num_tokens is {num_tokens!r}; allowed: 0 to {window_size**2}, what a window of {window_size}x'
                f'{window_size} tokens holds'
            )
        self.window_size = window_size
        self.num_tokens = num_tokens
        self.pool = pool
        self.global_blocks = check_blocks(global_blocks, depth, 'global_blocks')
        self.learned_blocks = (
            tuple(i for i in range(depth) if i not in self.global_blocks) if learned and num_tokens else ()
        )

    def windows(self, height: int, width: int) -> WindowPartition:
        """The windows of a grid of ``height`` x ``width`` tokens; one where ``window_size`` covers both sides."""
        return WindowPartition(height, width, self.window_size)

    def attention(self, tokens: WindowedTokens) -> GatheringAttention:
        """How the tokens of windows attend."""
        return POOLS[self.pool](tokens, self.num_tokens)


def check_blocks(value: Sequence[int], depth: int, name: str) -> tuple[int, ...]:
    """Return blocks of the main stage, counted from 0, or raise; -1 is the last one.

    Raises:
        TypeError: If ``value`` is no sequence.
        ValueError: If there is no such block, or they are not ascending.
    """
    if not isinstance(value, Sequence):
        raise TypeError(f'{name} is {value!r}; give a tuple of blocks of the main stage, such as (1, 3)')
    if any(not is_int(block) or not -depth <= block < depth for block in value):
        raise ValueError(
            f'{name} is {tuple(value)}; allowed: blocks of the main stage, 0 to {depth - 1}, or from the last one'
            f' backwards -1 to -{depth}'
        )
    blocks = [block % depth for block in value]
    if blocks != sorted(set(blocks)):
        raise ValueError(f'{name} is {tuple(value)}; give the blocks ascending and each once')
    return tuple(blocks)


class WindowedAttention(Attention):
    """Attention whose tokens may be in windows: how they attend to each other is handed in with them.

    Args:
        dim: Channels, a multiple of ``num_heads``.
        num_heads: Attention heads.

    Attributes:
        gathering_offset: Learned offset of the gathering tokens' keys and values, of shape
            ``(2, heads, num_tokens, C / heads)``, or None.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.gathering_offset: nn.Parameter | None = None

    def set_gathering_offset(self, num_tokens: int) -> None:
        """Learn an offset, 0 at first, of the keys and values of ``num_tokens`` gathering tokens; 0: without offset."""
        shape = (2, self.num_heads, num_tokens, self.proj.in_features // self.num_heads)
        if num_tokens == 0:
            self.gathering_offset = None
        elif self.gathering_offset is None or self.gathering_offset.shape != shape:
            self.gathering_offset = nn.Parameter(self.q_bias.new_zeros(shape))

    def forward(self, x: Tensor, attend: ProportionalAttention | GatheringAttention | None = None) -> Tensor:
        """``(B, ..., C)`` to the same shape.

        Args:
            x: The tokens; with ``attend``, those of its windows, ``(B, windows, m, C)``.
            attend: Which tokens see each other; None: every token sees every token.
        """
        if attend is None:
            return super().forward(x)
        out = self.attend(attend, *self.project(x.flatten(1, -2)))
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def attend(
        self, rule: ProportionalAttention | GatheringAttention, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Queries, keys, values ``(B, heads, N, d)`` to the same shape."""
        return rule(query, key, value, self.gathering_offset)


class ProportionalAttention:
    """Every token attends to every token; one that stands for several counts as several, and padding as none.

    Args:
        tokens: Windows and weights; the weights enter the scores by their logarithm (proportional attention, ToMe).
    """

    def __init__(self, tokens: WindowedTokens) -> None:
        self._bias = None if tokens.weight is None else tokens.weight.flatten(1).log()[:, None, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, _offset: Tensor | None = None) -> Tensor:
        """Queries, keys, values ``(B, heads, N, d)`` to the same shape; there are no gathering tokens to offset."""
        bias = None if self._bias is None else self._bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, bias)


class GatheringAttention:
    """A token attends to those of its own window and to the gathering tokens of all other windows.

    A gathering token is the mean of one cell of a window: of its keys and of its values. It counts in the softmax as
    many times as its cell has tokens, so that with as many cells as tokens this is exactly global attention.

    Args:
        tokens: Windows, positions and weights.
        num_tokens: Gathering tokens per window; 0: windows do not see each other.

    Attributes:
        num_tokens: Gathering tokens per window.
        others: For every window in turn the gathering tokens of the others, among those of all windows.
    """

    def __init__(self, tokens: WindowedTokens, num_tokens: int) -> None:
        grid, x = tokens.grid, tokens.x
        self._shape = (grid.num_windows, x.shape[2])
        self.num_tokens = num_tokens if grid.num_windows > 1 else 0
        own = None if tokens.weight is None else tokens.weight.log()  # B or 1, W, m
        if not self.num_tokens:
            self._bias = None if own is None else own.unsqueeze(1)
            return
        cell = grid.cells(grid.cut(num_tokens), x.device)
        cell = cell if tokens.index is None else cell[tokens.index]
        member = F.one_hot(cell, num_tokens).transpose(-1, -2).to(x.dtype)  # ..., K, m
        member = member[None, None] if tokens.index is None else member
        weighted = member if tokens.weight is None else member * tokens.weight.unsqueeze(-2)
        size = weighted.sum(-1)  # B or 1, W or 1, K
        self._pool = weighted / size.clamp(min=1).unsqueeze(-1)
        other = torch.arange(grid.num_windows - 1, device=x.device)
        others = other + (other >= torch.arange(grid.num_windows, device=x.device)[:, None])  # W, W - 1
        self.others = (others[..., None] * num_tokens + torch.arange(num_tokens, device=x.device)).flatten()
        far = (
            size.log().expand(-1, grid.num_windows, -1).flatten(1)[:, self.others].view(-1, grid.num_windows, self._far)
        )
        if own is None:
            own = far.new_zeros(1, 1, 1)
        batch = max(own.size(0), far.size(0))
        own = own.expand(batch, grid.num_windows, x.shape[2])
        self._bias = torch.cat((own, far.expand(batch, -1, -1)), -1).unsqueeze(1)  # B or 1, 1, W, m + (W - 1) K

    @property
    def _far(self) -> int:
        """Gathering tokens of other windows that a token attends to."""
        return (self._shape[0] - 1) * self.num_tokens

    @property
    def num_keys(self) -> int:
        """Keys of all windows together, those of gathering tokens as often as they are attended to."""
        windows, count = self._shape
        return windows * (count + self._far)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None = None) -> Tensor:
        """Queries, keys, values ``(B, heads, windows * m, d)`` to the same shape.

        Args:
            query: The queries.
            key: The keys.
            value: The values.
            offset: Added to the gathering tokens' keys and values, ``(2, heads, num_tokens, d)``.
        """
        query, key, value = (self._in_windows(x) for x in (query, key, value))
        key, value = (self._with_gathered(x, None if offset is None else offset[i]) for i, x in enumerate((key, value)))
        return self._attend(query, key, value, self._bias)

    def attention_weights(self, query: Tensor, key: Tensor, offset: Tensor | None = None) -> Tensor:
        """Where the attention of a window goes, for visualization: all scores of a head are in memory at once.

        Args:
            query: Queries of one head, ``(B, 1, windows * m, d)``.
            key: Its keys, of the same shape.
            offset: Added to the gathering tokens' keys, ``(1, num_tokens, d)``.

        Returns:
            ``(B, windows, m, m + (windows - 1) * num_tokens)``: for every token the attention to its own window's
            tokens, then to the gathering tokens of the other windows in order. It sums to 1.
        """
        keys = self._with_gathered(self._in_windows(key), offset)[:, :, 0]
        scores = self._in_windows(query)[:, 0] @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5
        if self._bias is not None:
            scores = scores + self._bias.squeeze(1).unsqueeze(-2)
        return scores.softmax(-1)

    def _in_windows(self, x: Tensor) -> Tensor:
        """``(B, heads, W * m, d)`` to ``(B, heads, W, m, d)``, without a copy."""
        return x.unflatten(2, self._shape)

    def _with_gathered(self, x: Tensor, offset: Tensor | None) -> Tensor:
        """``(B, heads, W, m, d)`` to ``(B, W, heads, m + ..., d)``: own tokens and the others' gathering tokens."""
        batch, heads, windows, _, dim = x.shape
        if not self.num_tokens:
            return x.transpose(1, 2)
        gathered = self._pool.to(x.dtype).unsqueeze(1) @ x
        if offset is not None:
            gathered = gathered + offset.to(x.dtype).unsqueeze(1)
        far = gathered.flatten(2, 3)[:, :, self.others].view(batch, heads, windows, self._far, dim)
        return _join(x, far)

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        """Attention in which each window is a sample, so that heads stay next to channels, as kernels leave them.

        Args:
            query: ``(B, heads, W, m, d)``.
            key: ``(B, W, heads, keys, d)``.
            value: As ``key``.
            bias: Added to the scores, ``(B or 1, heads or 1, W, keys)``.

        Returns:
            ``(B, heads, W * m, d)``.
        """
        batch, _, windows, _, _ = query.shape
        query = query.transpose(1, 2).flatten(0, 1)
        if bias is not None:
            bias = bias.to(query.dtype).expand(batch, -1, -1, -1).transpose(1, 2).flatten(0, 1).unsqueeze(2)
        out = F.scaled_dot_product_attention(query, key.flatten(0, 1), value.flatten(0, 1), bias)
        return out.unflatten(0, (batch, windows)).transpose(1, 2).flatten(2, 3)


class QueryGatheringAttention(GatheringAttention):
    """Gathering tokens that each window pools for itself, by the attention of its mean query.

    The weight of a cell in the softmax of a query q is the sum of exp(q k) over its keys k. Its logarithm is expanded
    around the mean query of the window to first order: the value there, and as gradient the mean of the keys weighted
    by the attention of the mean query. So the key of a gathering token is exact for the mean query, while that of
    :class:`GatheringAttention` is exact only for the query 0, which attends to all keys equally. The value of a
    gathering token is the mean of the values with the same weights. With as many cells as tokens this is exactly global
    attention. The cost is that of 1 + 2 ``num_tokens`` further queries per window with global attention.

    Args:
        tokens: Windows, positions and weights.
        num_tokens: Gathering tokens per window; 0: windows do not see each other.
    """

    def __init__(self, tokens: WindowedTokens, num_tokens: int) -> None:
        super().__init__(tokens, num_tokens)
        self._weights = None if tokens.weight is None else tokens.weight.unsqueeze(1)  # B or 1, 1, W, m
        if not self.num_tokens:
            return
        windows = self._shape[0]
        own = self._bias[..., : self._shape[1]]
        self._own_bias = own  # B or 1, 1, W, m
        self._member = (self._pool > 0).to(tokens.x.dtype)  # B or 1, W or 1, K, m; padding is in no cell
        other = torch.arange(windows - 1, device=tokens.x.device)
        window = torch.arange(windows, device=tokens.x.device)[:, None]
        self._pairs = (window * windows + other + (other >= window)).flatten()  # of W * W: a window, and each other one

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None = None) -> Tensor:
        """See :class:`GatheringAttention`."""
        if not self.num_tokens:
            return super().__call__(query, key, value, offset)
        query, key, value = (self._in_windows(x) for x in (query, key, value))
        far_key, far_value, mass = self._gather(query, key, value, offset)
        own = self._own_bias.to(query.dtype).expand(*mass.shape[:2], -1, -1)
        return self._attend(query, _join(key, far_key), _join(value, far_value), torch.cat((own, mass), -1))

    def attention_weights(self, query: Tensor, key: Tensor, offset: Tensor | None = None) -> Tensor:
        """See :class:`GatheringAttention`."""
        if not self.num_tokens:
            return super().attention_weights(query, key, offset)
        query, key = (self._in_windows(x) for x in (query, key))
        both = None if offset is None else torch.stack((offset, offset))
        far_key, _, mass = self._gather(query, key, key, both)
        scores = query @ torch.cat((key, far_key), 3).transpose(-1, -2) / query.shape[-1] ** 0.5
        bias = torch.cat((self._own_bias.expand(len(query), 1, -1, -1), mass), -1)
        return (scores + bias.unsqueeze(3)).softmax(-1)[:, 0]

    def _gather(
        self, query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For every window the gathering tokens of the others.

        Args:
            query: ``(B, heads, W, m, d)``, as ``key`` and ``value``.
            key: The keys.
            value: The values.
            offset: Of the gathering tokens' keys and values, ``(2, heads, K, d)``.

        Returns:
            Keys and values ``(B, heads, W, (W - 1) K, d)``, and what is added to their scores, without ``d``.
        """
        dim = query.shape[-1]
        mean = query.mean(3) if self._weights is None else self._weighted_mean(query)  # B, heads, W, d
        scores = mean.unsqueeze(2) @ key.transpose(-1, -2) / dim**0.5  # B, heads, source, W, m
        if self._weights is not None:
            scores = scores + self._weights.log().unsqueeze(3).to(scores.dtype)  # padding: -inf
        highest = scores.amax(-1, keepdim=True).detach().clamp(min=-1e4)
        member = self._member.to(scores.dtype).unsqueeze(1).unsqueeze(3)  # B or 1, 1, W or 1, 1, K, m
        attention = (scores - highest).exp().unsqueeze(-2) * member  # B, heads, source, W, K, m
        total = attention.sum(-1)
        attention = (attention / total.clamp(min=1e-6).unsqueeze(-1)).flatten(3, 4)
        far_key, far_value = (self._others(attention @ x) for x in (key, value))
        mass = (total.clamp(min=1e-6).log() + highest).masked_fill(member.sum(-1) == 0, float('-inf'))
        mass = self._others(mass.flatten(3, 4).unsqueeze(-1)).squeeze(-1)
        mass = mass - (far_key @ mean.unsqueeze(-1)).squeeze(-1) / dim**0.5
        if offset is not None:
            windows = self._shape[0] - 1
            far_key, far_value = (
                x + one.to(x.dtype).repeat(1, windows, 1).unsqueeze(1)
                for x, one in zip((far_key, far_value), offset, strict=True)
            )
        return far_key, far_value, mass

    def _weighted_mean(self, query: Tensor) -> Tensor:
        weights = self._weights.to(query.dtype)
        return (query * weights.unsqueeze(-1)).sum(3) / weights.sum(-1).clamp(min=1).unsqueeze(-1)

    def _others(self, x: Tensor) -> Tensor:
        """Of ``(B, heads, source, W * K, d)`` the other sources of each window, ``(B, heads, W, (W - 1) K, d)``."""
        batch, heads, windows, _, dim = x.shape
        x = x.view(batch, heads, windows, windows, self.num_tokens, dim).transpose(2, 3).flatten(2, 3)
        return x[:, :, self._pairs].view(batch, heads, windows, self._far, dim)


def _join(own: Tensor, far: Tensor) -> Tensor:
    """Keys ``(B, heads, W, ..., d)`` of the windows and of the others, to ``(B, W, heads, ..., d)``."""
    return torch.cat((own.transpose(1, 2), far.transpose(1, 2)), 3)


POOLS: dict[str, type[GatheringAttention]] = {'mean': GatheringAttention, 'query': QueryGatheringAttention}
"""Attention by the ``pool`` of :class:`TokenGathering`."""
