"""A picture with the tokens that were dropped, and where the attention of gathering tokens goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mmitpn.analysis.token_trace import TokenTrace

DPI = 110
_WIDE = 3.6  # inches of a panel
_COLUMNS = 3
_DARK = 0.22  # what is left of the brightness of a dropped token


def draw_tokens(image: np.ndarray, trace: TokenTrace, out_file: str | Path, *, title: str = '') -> Path:
    """Draw one PNG: the picture, what each step kept, and where the attention between windows goes.

    Args:
        image: The picture as the network was shown it, ``(H, W, 3)``, RGB, 8 bits.
        trace: What was seen (:func:`mmitpn.analysis.token_trace.trace_tokens`).
        out_file: The PNG; its folder is made.
        title: What stands above it.

    Returns:
        Its path.
    """
    height, width = image.shape[:2]
    panels = [('', None, None)]
    total = trace.grid.height * trace.grid.width
    for block, kept in trace.kept.items():
        panels.append((f'from block {block} on: {int(kept.sum())} of {total} tokens', kept.numpy(), None))
    blocks = list(trace.received)
    for block in dict.fromkeys((blocks[0], blocks[len(blocks) // 2], blocks[-1]) if blocks else ()):
        share = float(trace.leaving[block].mean())
        panels.append((f'block {block}: {share:.0%} of the attention leaves its window', None, block))
    rows = -(-len(panels) // _COLUMNS)
    columns = min(len(panels), _COLUMNS)
    tall = _WIDE * height / width + 0.35
    figure = Figure(figsize=(columns * _WIDE + 0.9, rows * tall + 0.5), dpi=DPI, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    peak = max((float(trace.received[block].max()) for block in blocks), default=1.0)
    scale = Normalize(0, peak)
    for axis, (caption, kept, block) in zip(axes, panels, strict=False):
        if block is not None:
            _draw_received(axis, image, trace, block, scale)
        else:
            axis.imshow(image if kept is None else _darkened(image, kept))
        if not caption:
            caption = f'{width}x{height} pixels, {trace.grid.width}x{trace.grid.height} tokens'
        axis.set_title(caption, fontsize=8.5)
    for axis in axes:
        axis.set_axis_off()
    if blocks:
        bar = figure.colorbar(ScalarMappable(scale, 'inferno'), ax=list(axes), shrink=0.7, pad=0.01)
        bar.set_label("attention a position gets from other windows (1: one token's all)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title, fontsize=10)
    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(out_file))
    return out_file


def _to_pixels(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A value for each token as one for each pixel; what the network padded is cut."""
    return values.repeat(16, 0).repeat(16, 1)[: image.shape[0], : image.shape[1]]


def _darkened(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    factor = np.where(_to_pixels(kept, image), 1.0, _DARK)[..., None]
    return (image * factor).astype(np.uint8)


def _draw_received(axis: Axes, image: np.ndarray, trace: TokenTrace, block: int, scale: Normalize) -> None:
    height, width = image.shape[:2]
    axis.imshow(image.mean(-1), cmap='gray', vmin=0, vmax=255)
    axis.imshow(_to_pixels(trace.received[block].numpy(), image), cmap='inferno', norm=scale, alpha=0.6)
    grid = trace.grid
    for row in range(1, grid.rows):
        axis.axhline(row * grid.tall * 16 - 0.5, color='w', lw=0.7, alpha=0.8)
    for column in range(1, grid.columns):
        axis.axvline(column * grid.wide * 16 - 0.5, color='w', lw=0.7, alpha=0.8)
    for (row, column), share in np.ndenumerate(trace.leaving[block].numpy()):
        y, x = (row + 0.5) * grid.tall * 16, (column + 0.5) * grid.wide * 16
        if y < height and x < width:
            axis.text(x, y, f'{share:.0%}', color='w', fontsize=6.5, ha='center', va='center')
