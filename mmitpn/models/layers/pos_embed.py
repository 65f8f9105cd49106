"""Learned positions, absolute and relative, are resized here, the one resampling; and how absolute ones start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .patch import is_dynamic

# --- resampling ----------------------------------------------------------------------------------------------------


def resample(values: Tensor, target: tuple[int, int], mode: str = 'bicubic') -> Tensor:
    """Resize a grid of vectors in fp32, by target size (no ``align_corners``, no antialiasing).

    Bicubic and linear resizing are linear and separable: one small matrix a direction does it. Unlike
    ``F.interpolate``, its gradient is deterministic on a GPU too.

    Args:
        values: ``(h, w, C)``.
        target: Height and width wanted.
        mode: ``'bicubic'`` or ``'linear'``.

    Returns:
        ``(*target, C)``, fp32.
    """
    height, width, dim = values.shape
    with torch.autocast(values.device.type, enabled=False):
        rows = _resampling_matrix(height, target[0], mode, values.device) @ values.float().reshape(height, width * dim)
        return _resampling_matrix(width, target[1], mode, values.device) @ rows.view(target[0], width, dim)


def _resampling_matrix(source: int, target: int, mode: str, device: torch.device) -> Tensor:
    """The ``(target, source)`` matrix of one-dimensional resampling."""
    basis = torch.eye(source, device=device)[None]  # 1, basis vector, position
    if mode == 'linear':
        return F.interpolate(basis, size=target, mode='linear', align_corners=False)[0].T.contiguous()
    resized = F.interpolate(basis[..., None], size=(target, 1), mode=mode, align_corners=False)
    return resized[0, :, :, 0].T.contiguous()


def _are_equal(source: Sequence[int], target: Sequence[int]) -> bool:
    """Whether two grids are known to be the same; dynamic sides are not, and resampling to the same grid is exact."""
    return not any(map(is_dynamic, target)) and tuple(source) == tuple(target)


def resample_abs_pos_embed(embedding: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a position embedding bicubically.

    Args:
        embedding: ``(1, N, C)`` with ``N = source[0] * source[1]`` tokens, row by row.
        source: Height and width of its grid, in tokens.
        target: Height and width wanted, in tokens.

    Returns:
        ``(1, target[0] * target[1], C)``: the embedding itself where the two grids are the same, else fp32.
    """
    if _are_equal(source, target):
        return embedding
    return resample(embedding.reshape(*source, -1), target).view(1, target[0] * target[1], -1)


def resample_rel_pos_table(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a table of relative positions bicubically.

    Args:
        table: ``((2 * h - 1) * (2 * w - 1), heads)``, rows first.
        source: Grid ``(h, w)`` it was made for, in tokens.
        target: Grid wanted, in tokens.

    Returns:
        The table of the wanted grid: the given one where the two are the same, else fp32.
    """
    if _are_equal(source, target):
        return table
    (rows, columns), (height, width) = ((2 * side - 1 for side in grid) for grid in (source, target))
    return resample(table.reshape(rows, columns, -1), (height, width)).view(height * width, -1)


def resample_rel_pos(vectors: Tensor, side: int) -> Tensor:
    """Resize the vectors of all offsets along one side linearly: ``(2 * s - 1, C)`` to ``(2 * side - 1, C)``."""
    if _are_equal((len(vectors),), (2 * side - 1,)):
        return vectors
    return resample(vectors[:, None], (2 * side - 1, 1), 'linear')[:, 0]


# --- initialization ------------------------------------------------------------------------------------------------

POS_EMBED_INITS = ('trunc_normal', 'sincos')


def check_pos_embed_init(value: str) -> str:
    """Return the name of an initialization of the position embedding or raise ValueError."""
    if value not in POS_EMBED_INITS:
        raise ValueError(f'pos_embed_init is {value!r}; allowed: {", ".join(map(repr, POS_EMBED_INITS))}')
    return value


def sincos_pos_embed(grid: tuple[int, int], channels: int) -> Tensor:
    """The two-dimensional position embedding of sines and cosines of MAE (arXiv 2111.06377).

    Args:
        grid: Height and width in tokens.
        channels: A multiple of 4: a quarter each for sine and cosine of the column, then of the row.

    Returns:
        ``(1, h * w, channels)``, row by row.

    Raises:
        ValueError: If ``channels`` is not a multiple of 4.
    """
    # mmpretrain's build_2d_sincos_position_embedding is the transpose of MAE's and of the authors' files.
    if channels % 4:
        raise ValueError(f'sine positions of {channels} channels: give a multiple of 4')
    rates = 10000 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64)[:, None] * rates for side in grid)
    shape = (*grid, -1)
    parts = [part[None].expand(shape) for part in (columns.sin(), columns.cos())]
    parts += [part[:, None].expand(shape) for part in (rows.sin(), rows.cos())]
    return torch.cat(parts, -1).flatten(0, 1)[None].float()
