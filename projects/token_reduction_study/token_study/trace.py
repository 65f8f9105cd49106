"""What token migration and token gathering do to an image, block by block: recorded in a forward pass, and drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmitpn.models.token_reduction import GatheringAttention, ProportionalAttention, WindowedTokens, WindowPartition

STRIDE = 16  # pixels per token
DPI = 110
_PANEL_WIDTH = 3.6  # inches
_COLUMNS = 3
_DROPPED_BRIGHTNESS = 0.22


@dataclass
class TokenTrace:
    """The main stage on one image.

    Attributes:
        grid: The windows.
        kept: Block before which tokens are dropped -> those left, ``(height, width)`` of bool.
        received: Windowed block -> attention that the cells of each window receive from the tokens of all other
            windows, through gathering tokens: ``(height, width)``, where 1 is all attention of one token; that of a
            cell is spread evenly over its tokens.
        leaving: Windowed block -> fraction of each window's attention that leaves it, ``(rows, columns)``.
    """

    grid: WindowPartition
    kept: dict[int, Tensor] = field(default_factory=dict)
    received: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)


@torch.no_grad()
def trace_tokens(backbone: nn.Module, image: Tensor) -> TokenTrace:
    """Run a backbone on an image and record its tokens.

    Args:
        backbone: A FastITPN with token migration, token gathering or both, in training or evaluation mode.
        image: Normalized, ``(1, 3, H, W)``.

    Raises:
        ValueError: If the backbone has neither, or there is more than one image.
    """
    reduction = getattr(backbone, 'token_reduction', None)
    if reduction is None:
        raise ValueError(
            f'{type(backbone).__name__} has no token_migration and no token_gathering here: nothing is dropped or '
            'gathered; set them, for example --cfg-options model.backbone.token_migration.keep_ratio=0.5 '
            'model.backbone.token_gathering.window_size=16'
        )
    if image.shape[0] != 1:
        raise ValueError(f'{image.shape[0]} images were given; a trace is of one')
    traces: list[TokenTrace] = []
    counts = [0]

    def observe(block: int, tokens: WindowedTokens, attend: GatheringAttention | ProportionalAttention) -> None:
        if not traces:
            traces.append(TokenTrace(tokens.grid))
        if tokens.index is not None and tokens.x.shape[2] != counts[-1]:
            traces[0].kept[block] = _kept_mask(tokens)
        counts.append(tokens.x.shape[2])
        if isinstance(attend, GatheringAttention) and attend.num_tokens:
            _record_attention(
                traces[0], block, tokens, attend, backbone.blocks[block].norm1, backbone.blocks[block].attn
            )

    reduction.observer = observe
    try:
        backbone(image)
    finally:
        reduction.observer = None
    return traces[0]


def _kept_mask(tokens: WindowedTokens) -> Tensor:
    kept = torch.zeros(1, tokens.grid.num_windows, tokens.grid.tokens_per_window).scatter(2, tokens.index, 1.0)
    return tokens.grid.merge(kept.unsqueeze(-1))[0, :, :, 0] > 0


def _record_attention(
    trace: TokenTrace,
    block: int,
    tokens: WindowedTokens,
    attend: GatheringAttention,
    norm: nn.Module,
    attention: nn.Module,
) -> None:
    grid, count = tokens.grid, tokens.x.shape[2]
    query, key, _ = attention.project(norm(tokens.x).flatten(1, 2))
    real = tokens.weights()[0] > 0  # W, m
    cut = grid.cut(attend.num_tokens)
    received = torch.zeros(grid.num_windows * attend.num_tokens)
    leaving = torch.zeros(grid.num_windows)
    for head in range(attention.num_heads):
        offset = None if attention.gathering_offset is None else attention.gathering_offset[0, head : head + 1]
        probabilities = attend.attention_weights(query[:, head : head + 1], key[:, head : head + 1], offset)[0]
        outside = probabilities[..., count:] * real.unsqueeze(-1)  # padding does not count
        received.index_add_(0, attend.others, outside.sum(1).flatten().float())
        leaving += outside.sum((1, 2)) / real.sum(1)
    cell = grid.cells(cut, torch.device('cpu'))
    weight = grid.weight(torch.device('cpu'))
    present = torch.ones(grid.num_windows, grid.tokens_per_window) if weight is None else weight[0]
    size = torch.zeros(grid.num_windows, attend.num_tokens).index_add(1, cell, present)  # of each cell, without padding
    spread = (received.view(grid.num_windows, attend.num_tokens) / size.clamp(min=1))[:, cell] / attention.num_heads
    trace.received[block] = grid.merge(spread.view(1, grid.num_windows, grid.tokens_per_window, 1))[0, :, :, 0]
    trace.leaving[block] = (leaving / attention.num_heads).view(grid.rows, grid.columns)


def draw_tokens(image: np.ndarray, trace: TokenTrace, out_file: str | Path, *, title: str = '') -> Path:
    """Draw one PNG: the image, the tokens left after each step, and the attention between windows.

    Args:
        image: The image as the network gets it, before normalization: ``(H, W, 3)``, RGB, 8 bits.
        trace: Of :func:`trace_tokens`.
        out_file: The PNG; its folder is made.
        title: Written above it.

    Returns:
        Its path.
    """
    height, width = image.shape[:2]
    panels = [(f'{width}x{height} pixels, {trace.grid.width}x{trace.grid.height} tokens', None, None)]
    total = trace.grid.height * trace.grid.width
    for block, kept in trace.kept.items():
        panels.append((f'from block {block} on: {int(kept.sum())} of {total} tokens', kept.numpy(), None))
    blocks = list(trace.received)
    for block in dict.fromkeys((blocks[0], blocks[len(blocks) // 2], blocks[-1]) if blocks else ()):
        fraction = float(trace.leaving[block].mean())
        panels.append((f'block {block}: {fraction:.0%} of the attention leaves its window', None, block))
    rows = -(-len(panels) // _COLUMNS)
    columns = min(len(panels), _COLUMNS)
    panel_height = _PANEL_WIDTH * height / width + 0.35
    figure = Figure(figsize=(columns * _PANEL_WIDTH + 0.9, rows * panel_height + 0.5), dpi=DPI, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    peak = max((float(trace.received[block].max()) for block in blocks), default=1.0)
    scale = Normalize(0, peak)
    for axis, (caption, kept, block) in zip(axes, panels, strict=False):
        if block is not None:
            _draw_received(axis, image, trace, block, scale)
        else:
            axis.imshow(image if kept is None else _darkened(image, kept))
        axis.set_title(caption, fontsize=8.5)
    for axis in axes:
        axis.set_axis_off()
    if blocks:
        bar = figure.colorbar(ScalarMappable(scale, 'inferno'), ax=list(axes), shrink=0.7, pad=0.01)
        bar.set_label('attention received from other windows (1: all of one token)', fontsize=8)
        bar.ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title, fontsize=10)
    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(out_file))
    return out_file


def _to_pixels(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A value for each token as one for each pixel; what the network padded is cut."""
    return values.repeat(STRIDE, 0).repeat(STRIDE, 1)[: image.shape[0], : image.shape[1]]


def _darkened(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    factor = np.where(_to_pixels(kept, image), 1.0, _DROPPED_BRIGHTNESS)[..., None]
    return (image * factor).astype(np.uint8)


def _draw_received(axis: Axes, image: np.ndarray, trace: TokenTrace, block: int, scale: Normalize) -> None:
    height, width = image.shape[:2]
    axis.imshow(image.mean(-1), cmap='gray', vmin=0, vmax=255)
    axis.imshow(_to_pixels(trace.received[block].numpy(), image), cmap='inferno', norm=scale, alpha=0.6)
    window_height, window_width = trace.grid.window_h * STRIDE, trace.grid.window_w * STRIDE
    for row in range(1, trace.grid.rows):
        axis.axhline(row * window_height - 0.5, color='w', lw=0.7, alpha=0.8)
    for column in range(1, trace.grid.columns):
        axis.axvline(column * window_width - 0.5, color='w', lw=0.7, alpha=0.8)
    for (row, column), fraction in np.ndenumerate(trace.leaving[block].numpy()):
        y, x = (row + 0.5) * window_height, (column + 0.5) * window_width
        if y < height and x < width:
            axis.text(x, y, f'{fraction:.0%}', color='w', fontsize=6.5, ha='center', va='center')
