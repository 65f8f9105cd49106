"""The learned absolute position embedding, resized to any grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# (source length, target length, device) -> resampling matrix. The matrices do not depend on the weights, so that
# nothing has to be invalidated, and the resized embedding stays differentiable.
_MATRICES: dict[tuple[int, int, torch.device], Tensor] = {}
_MAX_MATRICES = 256


def _build_matrix(source: int, target: int, device: torch.device) -> Tensor:
    rows = torch.eye(source, device=device)[None, :, :, None]  # 1, basis vector, position, 1
    resized = F.interpolate(rows, size=(target, 1), mode='bicubic', align_corners=False)
    return resized[0, :, :, 0].T.contiguous()


def _matrix(source: int, target: int, device: torch.device) -> Tensor:
    """The ``(target, source)`` matrix of one-dimensional bicubic resampling, cached."""
    if torch.compiler.is_compiling():
        return _build_matrix(source, target, device)
    key = (source, target, device)
    matrix = _MATRICES.get(key)
    if matrix is None:
        # An inference tensor could not take part in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            matrix = _build_matrix(source, target, device)
        if type(matrix) is Tensor:  # not a fake tensor of a tracer
            if len(_MATRICES) >= _MAX_MATRICES:
                _MATRICES.pop(next(iter(_MATRICES)))
            _MATRICES[key] = matrix
    return matrix


def resize_position_embedding(embedding: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a position embedding bicubically in fp32, by target size (no ``align_corners``, no antialiasing).

    Bicubic resizing is linear and separable: one small cached matrix a direction does it, with a gradient.

    Args:
        embedding: ``(1, N, C)`` with ``N = source[0] * source[1]`` tokens, row by row.
        source: Height and width of its grid, in tokens.
        target: Height and width wanted, in tokens.

    Returns:
        ``(1, target[0] * target[1], C)``: the embedding itself where the two grids are the same, else fp32.
    """
    if tuple(source) == tuple(target):
        return embedding
    dim = embedding.shape[-1]
    with torch.autocast(embedding.device.type, enabled=False):
        grid = embedding.float().view(source[0], source[1] * dim)
        rows = _matrix(source[0], target[0], embedding.device) @ grid  # target rows, source columns * C
        columns = _matrix(source[1], target[1], embedding.device) @ rows.view(target[0], source[1], dim)
    return columns.view(1, target[0] * target[1], dim)
