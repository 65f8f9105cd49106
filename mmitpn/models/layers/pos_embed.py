"""Learned positions: the one resampling, absolute and relative, and how a state dict of another grid is taken."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def resample_abs_pos_embed(embedding: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a position embedding bicubically.

    Args:
        embedding: ``(1, N, C)`` with ``N = source[0] * source[1]`` tokens, row by row.
        source: Height and width of its grid, in tokens.
        target: Height and width wanted, in tokens.

    Returns:
        ``(1, target[0] * target[1], C)``: the embedding itself where the two grids are the same, else fp32.
    """
    if tuple(source) == tuple(target):
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
    if tuple(source) == tuple(target):
        return table
    (rows, columns), (height, width) = ((2 * side - 1 for side in grid) for grid in (source, target))
    return resample(table.reshape(rows, columns, -1), (height, width)).view(height * width, -1)


def resample_rel_pos(vectors: Tensor, side: int) -> Tensor:
    """Resize the vectors of all offsets along one side linearly: ``(2 * s - 1, C)`` to ``(2 * side - 1, C)``."""
    if len(vectors) == 2 * side - 1:
        return vectors
    return resample(vectors[:, None], (2 * side - 1, 1), 'linear')[:, 0]


# --- state dicts of another grid -----------------------------------------------------------------------------------


class PositionFit(NamedTuple):
    """How learned positions of a file that have another shape than a module's are taken.

    Attributes:
        adopted: The module takes the file's grid, and the values stay as they are; else they are resized, once.
        source: Side of the file's grid (or window) in tokens.
        target: Side of the module's.
        setting: The setting of the backbone that builds the module with the file's grid, such as ``img_size=256``.
    """

    adopted: bool
    source: int
    target: int
    setting: str


class LearnedPositions(nn.Module):
    """Base of modules with positions that are learned for a grid: they adapt a state dict of another grid themselves.

    It holds for every way of loading: ``load_state_dict``, mmengine's loading and resuming, averaged copies. A module
    that follows the file gives its parameter the file's shape; the ``Parameter`` object stays, so that optimizers and
    averaged models keep what they refer to. Any other module resizes the values of the file to its own grid.

    Subclasses define :meth:`fit_positions`, :meth:`adopt_grid` and :meth:`resize_positions`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_pre_hook(_adapt_before_loading)

    def fit_positions(self, name: str, shape: Sequence[int]) -> PositionFit | None:
        """How a weight of a file is taken; nothing changes.

        Args:
            name: Name of the weight in this module, without a prefix.
            shape: Its shape in the file, another than here.

        Returns:
            None if it is no weight of positions, or differs in more than the grid.
        """
        raise NotImplementedError

    def adopt_grid(self, side: int) -> None:
        """Take note that the positions are now those of a grid of that side, in tokens."""
        raise NotImplementedError

    def resize_positions(self, name: str, value: Tensor, side: int) -> Tensor:
        """Positions of a file, of a grid of that side in tokens, for the grid of this module."""
        raise NotImplementedError

    def adapt_state_dict(self, state: Mapping[str, Tensor], prefix: str = '') -> dict[str, Tensor]:
        """Fit learned positions of other grids, of this module and of those in it: what every loading does.

        Args:
            state: Weights by name; it stays as it is.
            prefix: What precedes this module's own names in it, such as ``'backbone.'``.

        Returns:
            The state dict to load. Positions of another grid are resized to the module's; where the module follows the
            file, they stay, and the module's parameters take their shape.

        Raises:
            ValueError: If the module would have to take another shape and is wrapped for distributed training.
        """
        adapted = dict(state)
        for path, module in self.named_modules(prefix=prefix.removesuffix('.')):
            if isinstance(module, LearnedPositions):
                module._adapt(adapted, f'{path}.' if path else '')
        return adapted

    def _adapt(self, state: dict[str, Tensor], prefix: str) -> None:
        """Fit this module's own positions; ``state`` is changed."""
        for name, parameter in self.named_parameters(recurse=False):
            value = state.get(prefix + name)
            if value is None or value.shape == parameter.shape:
                continue
            fit = self.fit_positions(name, value.shape)
            if fit is None:
                continue  # torch reports the shapes
            if fit.adopted:
                self._check_not_wrapped(name, fit)
                parameter.data = parameter.data.new_empty(value.shape)
                parameter.grad = None
                self.adopt_grid(fit.source)
            else:
                state[prefix + name] = self._resized(name, value, fit.source)

    @torch.no_grad()
    def _resized(self, name: str, value: Tensor, side: int) -> Tensor:
        if not _is_sharded(value):
            return self.resize_positions(name, value, side)
        from torch.distributed.tensor import distribute_tensor  # FSDP shards the file's weights before loading

        resized = self.resize_positions(name, value.full_tensor(), side)
        return distribute_tensor(resized, value.device_mesh, value.placements)

    def _check_not_wrapped(self, name: str, fit: PositionFit) -> None:
        wrapper = 'FSDP' if _is_sharded(getattr(self, name)) else _wrapper_of(self)
        if wrapper:
            raise ValueError(
                f'the {name} of the checkpoint is for {fit.source}x{fit.source} tokens, that of the module for'
                f' {fit.target}x{fit.target}, and the module is in {wrapper} already, where shapes are fixed:'
                f' set {fit.setting} on the backbone'
            )


def _adapt_before_loading(module: LearnedPositions, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    module._adapt(state_dict, prefix)  # torch and mmengine hand over a copy of the user's dict


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
