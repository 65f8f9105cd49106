"""Pixels of patches as targets."""

from __future__ import annotations

import torch
from torch import Tensor

from .masking import PATCH, grid_of

PIXEL_CHANNELS = 3 * PATCH * PATCH


def patches_of(images: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` as patches ``(B, h, w, 768)``: row, column, colour."""
    height, width = grid_of(images)
    x = images.view(len(images), 3, height, PATCH, width, PATCH)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3)


def images_of(patches: Tensor) -> Tensor:
    """The inverse of :func:`patches_of`."""
    batch, height, width, _ = patches.shape
    x = patches.view(batch, height, width, PATCH, PATCH, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, height * PATCH, width * PATCH)


def statistics_of(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch, ``(B, h, w, 1)``, as in MAE: unbiased, with 1e-6 below the root."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def normed_pixels(images: Tensor) -> Tensor:
    """Patches ``(B, h, w, 768)``, each with mean 0 and deviation 1."""
    patches = patches_of(images)
    mean, deviation = statistics_of(patches)
    return (patches - mean) / deviation
