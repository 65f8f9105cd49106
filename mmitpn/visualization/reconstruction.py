"""Images, their masks, and what pre-training makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

DPI = 110
_SIDE = 2.6  # inches of a panel
_GREY = 110  # brightness of a masked patch


@dataclass(frozen=True)
class Reconstruction:
    """One image.

    Attributes:
        image: The image, ``(H, W, 3)``, RGB, 8 bits.
        mask: Which pixels are masked, ``(H, W)``.
        pixels: The reconstructed image, ``(H, W, 3)``, RGB, 8 bits; None where no pixels are predicted.
        distances: For each target (a title) how far the prediction is from it at every place, ``(h, w)``.
    """

    image: np.ndarray
    mask: np.ndarray
    pixels: np.ndarray | None
    distances: Mapping[str, np.ndarray]


def draw_reconstructions(found: Sequence[Reconstruction], out_file: str | Path, *, title: str = '') -> Path:
    """Draw one PNG, an image a row: input, what the network sees, reconstruction, distances.

    Args:
        found: The images; all with the same targets.
        out_file: The PNG; its folder is made.
        title: What stands above it.

    Returns:
        Its path.

    Raises:
        ValueError: If there are no images.
    """
    if not found:
        raise ValueError('there is no image to draw')
    names = list(found[0].distances)
    headings = ['input', 'seen', *(['reconstruction'] if found[0].pixels is not None else []), *names]
    height, width = found[0].image.shape[:2]
    size = (len(headings) * _SIDE + 0.3, len(found) * _SIDE * height / width + 0.9)
    figure = Figure(figsize=size, dpi=DPI, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(found), len(headings), squeeze=False)
    scales = {name: Normalize(0, max(float(one.distances[name].max()) for one in found) or 1.0) for name in names}
    for row, one in zip(axes, found, strict=True):
        panels = [one.image, _hidden(one.image, one.mask)]
        panels += [one.pixels] if one.pixels is not None else []
        for axis, panel in zip(row, panels, strict=False):
            axis.imshow(panel)
        for axis, name in zip(row[len(panels) :], names, strict=True):
            axis.imshow(one.distances[name], cmap='viridis', norm=scales[name])
    for axis, heading in zip(axes[0], headings, strict=True):
        axis.set_title(heading, fontsize=9)
    for axis in axes.flatten():
        axis.set_axis_off()
    for name in names:
        column = headings.index(name)
        bar = figure.colorbar(
            ScalarMappable(scales[name], 'viridis'), ax=list(axes[:, column]), shrink=0.8, location='bottom', pad=0.01
        )
        bar.ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title, fontsize=10)
    out_file = Path(out_file)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(out_file))
    return out_file


def _hidden(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], np.uint8(_GREY), image)
