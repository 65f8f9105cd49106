"""Feature maps as images: the first three principal components of each map as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmitpn.utils import IMAGENET_MEAN, IMAGENET_STD

from .image_grid import AnnotatedImage, draw_image_grid, save_figure

QUANTILES = (0.01, 0.99)  # of each component, drawn as 0 and 255: a few outliers must not darken the rest


@dataclass(frozen=True)
class PCA:
    """Three principal components of feature maps, and the range of each that is drawn.

    Attributes:
        mean: Of each channel, ``(C,)``.
        components: Unit vectors, ``(C, 3)``, the one with the largest variance first.
        low: Value of each component that is drawn as 0, ``(3,)``.
        high: Value that is drawn as 255.
        explained: Fraction of the variance that the three components contain, 0 to 1.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor
    explained: float

    def to_image(self, feature_map: Tensor) -> np.ndarray:
        """Color a map ``(C, H, W)``; returns RGB, uint8 ``(H, W, 3)``. A component that does not vary is gray."""
        values = (_rows(feature_map) - self.mean) @ self.components
        span = self.high - self.low
        flat = span <= 1e-6 * self.high.abs().max().clamp(min=1e-12)
        values = torch.where(flat, 0.5, (values - self.low) / torch.where(flat, 1.0, span))
        colors = (values.clamp(0, 1) * 255).round().to(torch.uint8)
        return colors.view(*feature_map.shape[1:], 3).numpy()


def fit_pca(feature_maps: Sequence[Tensor]) -> PCA:
    """Fit the components to all positions of one or several maps; equal colors then mean equal features in all of them.

    The result is deterministic: the sign of a component is that for which its largest weight is positive.

    Args:
        feature_maps: Maps ``(C, H, W)`` of the same number of channels, floating point.

    Raises:
        ValueError: If there is no map, one has another shape, or a value is NaN or infinite.
    """
    if not feature_maps:
        raise ValueError('there is no feature map to fit the principal components to')
    shapes = [tuple(one.shape) for one in feature_maps]
    if any(len(shape) != 3 or 0 in shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f'feature maps have the shapes {shapes}; give maps (C, H, W) with the same C, none empty')
    rows = torch.cat([_rows(one) for one in feature_maps])
    if not torch.isfinite(rows).all():
        raise ValueError('the feature maps have NaN or infinite values; check the weights and the image')
    mean = rows.mean(dim=0)
    rows = rows - mean
    variances, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))  # ascending
    components = vectors.flip(1)[:, :3]
    components = torch.cat([components, components.new_zeros(len(components), 3 - components.shape[1])], dim=1)
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)
    # kthvalue and not quantile, which refuses more than 16 million values.
    projected = rows @ components
    low, high = (projected.kthvalue(1 + round(q * (len(rows) - 1)), dim=0).values for q in QUANTILES)
    total = float(variances.clamp(min=0).sum())
    explained = float(variances[-3:].clamp(min=0).sum()) / total if total > 0 else 1.0
    return PCA(mean, components, low, high, explained)


def pca_image(feature_map: Tensor) -> np.ndarray:
    """Draw the three principal components of a feature map as colors, see :func:`fit_pca`.

    Args:
        feature_map: ``(C, H, W)``, floating point.

    Returns:
        RGB, uint8 ``(H, W, 3)``.

    Raises:
        ValueError: If it has another shape, or a value is NaN or infinite.
    """
    return fit_pca([feature_map]).to_image(feature_map)


def _rows(feature_map: Tensor) -> Tensor:
    """``(C, H, W)`` to ``(H * W, C)`` in double precision, on the CPU."""
    return feature_map.detach().to('cpu', torch.float64).flatten(1).T


# --- the maps of a backbone and a pyramid -----------------------------------------------------------------------------


@torch.no_grad()
def extract_features(image: np.ndarray, backbone: nn.Module, pyramid: nn.Module | None = None) -> dict[str, Tensor]:
    """Compute the maps of a backbone, and the levels of a pyramid, for one image.

    Args:
        image: RGB, uint8 ``(H, W, 3)``, of any size; normalized here by ImageNet's mean and deviation.
        backbone: A backbone of this project, in evaluation mode.
        pyramid: The pyramid that takes its maps; None leaves it out.

    Returns:
        Name such as ``'backbone, stride 4'`` or ``'pyramid, stride 8'`` -> map ``(C, ceil(H / stride), ...)``.
    """
    device = next(backbone.parameters()).device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    maps = backbone(((torch.tensor(image, device=device).permute(2, 0, 1) - mean) / std)[None])
    found = {f'backbone, stride {stride}': one[0] for stride, one in zip(backbone.strides, maps, strict=True)}
    if pyramid is not None:
        levels = zip(pyramid.strides, pyramid(maps), strict=True)
        found |= {f'pyramid, stride {stride}': one[0] for stride, one in levels}
    return found


def draw_features(
    images: Sequence[np.ndarray],
    out_file: str | Path,
    *,
    backbone: nn.Module,
    pyramid: nn.Module | None = None,
    title: str = '',
    tile: int = 320,
) -> Path:
    """Draw images beside the principal components of their feature maps, as one PNG file.

    The components of a map are fitted to all images together: equal colors in one column mean equal features. Above
    each map stand its size and the fraction of the variance that the three components contain.

    Args:
        images: RGB, uint8 ``(H, W, 3)``, of any sizes.
        out_file: The file; its folder is created.
        backbone: See :func:`extract_features`, as ``pyramid``.
        pyramid: Drawn in a second row for each image.
        title: One line above all.
        tile: Side of the square that each map is fitted into, in pixels.

    Returns:
        Path of the file.
    """
    features = [extract_features(image, backbone, pyramid) for image in images]
    fits = {name: fit_pca([one[name] for one in features]) for name in (features[0] if features else ())}
    panels = []
    width = 1 + len(backbone.strides)
    columns = max(width, len(fits) + 1 - width)
    for image, maps in zip(images, features, strict=True):
        found = [AnnotatedImage(image, f'image, {_size(image.shape[:2])}')]
        for name, one in maps.items():
            text = f'{name}: {_size(one.shape[1:])}, {fits[name].explained:.0%}'
            found.append(AnnotatedImage(fits[name].to_image(one), text))
        blank = AnnotatedImage(np.full_like(image, 255))
        for row in filter(None, (found[:width], found[width:])):
            panels += [*row, *(columns - len(row)) * [blank]]
    return save_figure(draw_image_grid(panels, columns=columns, tile=tile, title=title), out_file)


def _size(shape: Sequence[int]) -> str:
    height, width = shape
    return f'{width}x{height}'
