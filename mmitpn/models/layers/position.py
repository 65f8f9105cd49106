"""Learned positions: the one resampling of the position embedding, and how a state dict of another grid is taken."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        grid = embedding.float().reshape(source[0], source[1] * dim)
        rows = _matrix(source[0], target[0], embedding.device) @ grid  # target rows, source columns * C
        columns = _matrix(source[1], target[1], embedding.device) @ rows.view(target[0], source[1], dim)
    return columns.view(1, target[0] * target[1], dim)


class PositionFit(NamedTuple):
    """How learned positions of a file that have another shape than a module's are taken.

    Attributes:
        adopted: The module takes the file's grid, and the values stay as they are; else they are resized, once.
        source: Side of the file's grid (or window) in tokens.
        target: Side of the module's.
    """

    adopted: bool
    source: int
    target: int


class LearnedPositions(nn.Module):
    """Base of modules with positions that are learned for a grid: they adapt a state dict of another grid themselves.

    It holds for every way of loading: ``load_state_dict``, mmengine's loading and resuming, averaged copies. A module
    that follows the file gives its parameter the file's shape; the ``Parameter`` object stays, so that optimizers and
    averaged models keep what they refer to. Any other module resizes the values of the file to its own grid.

    Subclasses define :meth:`fit_positions`, :meth:`adopt_grid`, :meth:`resize_positions` and ``position_setting``.
    """

    def fit_positions(self, name: str, shape: Sequence[int]) -> PositionFit | None:
        """How a weight of a file is taken; nothing changes.

        Args:
            name: Name of the weight in this module, without a prefix.
            shape: Its shape in the file, another than here.

        Returns:
            None if it is no weight of positions, or differs in more than the grid.
        """
        raise NotImplementedError

    def adopt_grid(self, name: str, side: int) -> None:
        """Take note that the positions ``name`` are now those of a grid of that side, in tokens."""
        raise NotImplementedError

    def resize_positions(self, name: str, value: Tensor, side: int) -> Tensor:
        """Positions of a file, of a grid of that side in tokens, for the grid of this module."""
        raise NotImplementedError

    def position_setting(self, side: int) -> str:
        """The setting of the backbone that builds this module with a grid of that side."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            value = state_dict.get(prefix + name)
            if value is None or value.shape == parameter.shape:
                continue
            fit = self.fit_positions(name, value.shape)
            if fit is None:
                continue  # torch reports the shapes
            if fit.adopted:
                self._check_not_wrapped(name, fit)
                parameter.data = parameter.data.new_empty(value.shape)
                parameter.grad = None
                self.adopt_grid(name, fit.source)
            else:
                state_dict[prefix + name] = self._resized(name, value, fit.source)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def _resized(self, name: str, value: Tensor, side: int) -> Tensor:
        if not _is_sharded(value):
            return self.resize_positions(name, value, side)
        from torch.distributed.tensor import distribute_tensor  # FSDP shares the file's weights out before loading

        resized = self.resize_positions(name, value.full_tensor(), side)
        return distribute_tensor(resized, value.device_mesh, value.placements)

    def _check_not_wrapped(self, name: str, fit: PositionFit) -> None:
        wrapper = 'FSDP' if _is_sharded(getattr(self, name)) else _wrapper_of(self)
        if wrapper:
            raise ValueError(
                f'the {name} of the checkpoint is for {fit.source}x{fit.source} tokens, that of the module for'
                f' {fit.target}x{fit.target}, and the module is in {wrapper} already, where shapes are fixed:'
                f' set {self.position_setting(fit.source)} on the backbone'
            )


def _is_sharded(value: Tensor) -> bool:
    return type(value).__name__ == 'DTensor'


def _wrapper_of(module: nn.Module) -> str:
    """Class name of the wrapper for distributed training around a module; empty if there is none.

    A module does not know what it is part of, so the wrappers of the process are asked; only where there can be any.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ''
    from torch.distributed.fsdp import FullyShardedDataParallel

    kinds = (nn.parallel.DistributedDataParallel, FullyShardedDataParallel)
    wrappers = (one for one in gc.get_objects() if issubclass(type(one), kinds))
    return next((type(one).__name__ for one in wrappers if any(part is module for part in one.modules())), '')
