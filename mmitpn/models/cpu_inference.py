"""Inference on a CPU: large maps a chunk at a time, and freed memory that is used again.

Without a backward pass nothing between the input and the output of a layer is kept. Where positions do not see each
other, a chunk of them can be computed at a time: its intermediate values then stay in the processor's caches, and the
C library hands the same memory out again for the next chunk, where a large map would come from the system, page by
page. The layers themselves know nothing of this: :func:`chunk_on_cpu` gives those of a built network the classes
below, which do the same in chunks on a CPU without gradients, and call the layer as it is everywhere else.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .layers import Attention, PointwiseBlock, TransformerBlock
from .token_reduction import GatheringAttention, ProportionalAttention, WindowedAttention

# Values of the widest intermediate map that are computed at once.
_CHUNK_VALUES = 2**20


def should_chunk(x: Tensor) -> bool:
    """Whether to work in chunks: on a CPU, without gradients, and not while a graph of the network is traced."""
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return x.device.type == 'cpu' and not torch.is_grad_enabled() and not traced


def chunk_size(width: int) -> int:
    """Number of rows of ``width`` values that are computed at once."""
    return max(1, _CHUNK_VALUES // width)


def apply_chunked(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Run a function that works on every position by itself.

    Args:
        function: ``(..., dim)`` to ``(..., dim_out)``; nothing in it may depend on the other positions.
        x: Its input, ``(..., dim)``.
        width: Channels of its widest intermediate map.

    Returns:
        ``(..., dim_out)``.
    """
    if not should_chunk(x):
        return function(x)
    rows, step = x.numel() // x.shape[-1], chunk_size(width)
    if rows <= step:
        return function(x)
    out = None
    for index, chunk in enumerate(x.reshape(rows, -1).split(step)):
        result = function(chunk)
        if out is None:
            out = result.new_empty(rows, result.shape[-1])
        out[index * step : index * step + len(chunk)] = result
    return out.view(*x.shape[:-1], -1)


def apply_in_bands(
    function: Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor]], coarse: Tensor, fine: Tensor, width: int
) -> tuple[Tensor | None, Tensor]:
    """Run a function of a map and one that is twice as fine, whose results depend on the same position only.

    Args:
        function: ``(B, h, w, C)`` and ``(B, H, W, c)``, H and W up to ``2 h`` and ``2 w``, to two maps
            ``(B, H, W, ...)``, of which the first may be None.
        coarse: The coarse map.
        fine: The fine map.
        width: Channels of the results.

    Returns:
        Both maps; in bands, the memory of the second one is ordered as ``(B, C, H, W)``, which is what heads take.
    """
    batch, height, columns = fine.shape[:3]
    step = max(1, 2 * _CHUNK_VALUES // (2 * columns * batch * width))  # coarse rows
    if not should_chunk(fine) or coarse.shape[1] <= step:
        return function(coarse, fine)
    first = second = None
    for row in range(0, coarse.shape[1], step):
        band = slice(2 * row, min(2 * (row + step), height))
        one, two = function(coarse[:, row : row + step], fine[:, band])
        if second is None:
            first = None if one is None else one.new_empty(batch, height, columns, one.shape[-1])
            second = two.new_empty(batch, two.shape[-1], height, columns).permute(0, 2, 3, 1)
        second[:, band] = two
        if first is not None:
            first[:, band] = one
    return first, second


# --- the layers, in chunks -----------------------------------------------------------------------------------------


class ChunkedPointwiseBlock(PointwiseBlock):
    """A :class:`PointwiseBlock`, some positions at a time."""

    def forward(self, x: Tensor) -> Tensor:
        """See :class:`PointwiseBlock`."""
        # While training, stochastic depth skips whole samples, not the rows of a chunk.
        return super().forward(x) if self.training else apply_chunked(super().forward, x, self.mlp.hidden)


class ChunkedTransformerBlock(TransformerBlock):
    """A :class:`TransformerBlock` with a feed-forward network that works on some tokens at a time."""

    def forward_mlp(self, x: Tensor) -> Tensor:
        """See :class:`TransformerBlock`."""
        return super().forward_mlp(x) if self.training else apply_chunked(super().forward_mlp, x, self.mlp.hidden)


class ChunkedAttention(Attention):
    """An :class:`Attention` that projects some tokens at a time."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Attention`: each result is contiguous, which a CPU's fused attention reads a tenth faster."""
        if x.device.type != 'cpu':
            return super().project(x)
        if not should_chunk(x):
            return torch.stack(super().project(x)).unbind(0)
        batch, tokens, dim = x.shape
        step = chunk_size(batch * 3 * dim)
        out = None
        for first in range(0, tokens, step):
            parts = super().project(x[:, first : first + step])
            if out is None:
                out = parts[0].new_empty(3, batch, self.num_heads, tokens, dim // self.num_heads)
            for whole, part in zip(out, parts, strict=True):
                whole[:, :, first : first + step] = part
        return out.unbind(0)


class ChunkedWindowedAttention(ChunkedAttention, WindowedAttention):
    """A :class:`WindowedAttention` that projects some tokens, and attends with some heads, at a time."""

    def attend(
        self, rule: ProportionalAttention | GatheringAttention, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """See :class:`WindowedAttention`: keys and values are copied, with the gathered ones, of few heads only."""
        batch, heads, _, dim = query.shape
        if not isinstance(rule, GatheringAttention) or not should_chunk(query):
            return super().attend(rule, query, key, value)
        step = chunk_size(batch * rule.num_keys * dim)
        if step >= heads:
            return super().attend(rule, query, key, value)
        out = torch.empty_like(query)
        for first in range(0, heads, step):
            some = slice(first, first + step)
            offset = None if self.gathering_offset is None else self.gathering_offset[:, some]
            out[:, some] = rule(query[:, some], key[:, some], value[:, some], offset)
        return out


_CHUNKED = {
    PointwiseBlock: ChunkedPointwiseBlock,
    TransformerBlock: ChunkedTransformerBlock,
    Attention: ChunkedAttention,
    WindowedAttention: ChunkedWindowedAttention,
}


def chunk_on_cpu(root: nn.Module) -> None:
    """Have the layers of a network work in chunks on a CPU, where no gradients are computed; results are the same."""
    for module in root.modules():
        module.__class__ = _CHUNKED.get(type(module), type(module))


# --- memory --------------------------------------------------------------------------------------------------------

# Of glibc's malloc.h, in bytes: blocks from this size on are mapped from the system one by one (32 MB is the largest
# value that it takes), and this much free memory at the end of the heap is kept.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_MAPPED, _KEPT = 32 * 2**20, 256 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory, and use it again.

    By default glibc soon gives large blocks back to the system, and gets them anew, page by page and filled with
    zeros, for the next operator: on large maps that takes longer than many an operator. The price is that the process
    may keep up to 256 MB that it does not use. Where the environment sets the allocator already (``MALLOC_...``,
    ``GLIBC_TUNABLES``, ``LD_PRELOAD`` of another one) it is left alone: ``MALLOC_TRIM_THRESHOLD_=131072`` is glibc's
    own setting.

    Returns:
        Whether freed memory is kept now.
    """
    chosen = [name for name in os.environ if name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES']
    if chosen or 'malloc' in os.environ.get('LD_PRELOAD', ''):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc has it; macOS and musl have not
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
