"""State dicts whose weights have other shapes: a module adapts them itself, in every way of loading."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class WeightFit(NamedTuple):
    """How a weight of a file that has another shape than the module's is taken.

    Attributes:
        source: What the file's shape is for: side of a grid or window in tokens, or number of input channels.
        target: The same of the module.
        setting: The setting of the backbone that decides it: for positions the one that builds the module with the
            file's grid, such as ``img_size=256``; for input channels ``in_channels_init='repeat'``.
        adopted: The module takes the file's shape, and the values stay as they are; else they are adapted, once.
        error: Why the module cannot take the weight, and the setting to change; empty if it can.
    """

    source: int
    target: int
    setting: str
    adopted: bool = False
    error: str = ''


class StateDictAdapter(nn.Module):
    """Base of modules that take some weights in another shape: they adapt a state dict themselves.

    It holds for every way of loading: ``load_state_dict``, mmengine's loading and resuming, averaged copies. A module
    that follows the file gives its parameter the file's shape; the ``Parameter`` object stays, so that optimizers and
    averaged models keep what they refer to. Any other module adapts the values of the file to its own shape.

    Subclasses define :meth:`fit_weight` and :meth:`adapt_weight`, and :meth:`adopt_weight` if they follow a file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_pre_hook(_adapt_before_loading)

    def fit_weight(self, name: str, shape: Sequence[int]) -> WeightFit | None:
        """How a weight of a file is taken; nothing changes.

        Args:
            name: Name of the weight in this module, without a prefix.
            shape: Its shape in the file, another than here.

        Returns:
            None if it is no weight that this module adapts, or differs in more than what it adapts.
        """
        raise NotImplementedError

    def adopt_weight(self, name: str, fit: WeightFit) -> None:
        """Take note that the parameter has the file's shape now."""
        raise NotImplementedError

    def adapt_weight(self, name: str, value: Tensor, fit: WeightFit) -> Tensor:
        """The weight of a file in the shape of this module."""
        raise NotImplementedError

    def adapt_state_dict(self, state: Mapping[str, Tensor], prefix: str = '') -> dict[str, Tensor]:
        """Fit weights of other shapes, of this module and of those in it: what every loading does.

        Args:
            state: Weights by name; it stays as it is.
            prefix: What precedes this module's own names in it, such as ``'backbone.'``.

        Returns:
            The state dict to load. Positions of another grid are resized to the module's, and the first layer's weights
            are adapted to its input channels; where the module follows the file, they stay, and the module's parameters
            take their shape.

        Raises:
            ValueError: If the module would have to take another shape and is wrapped for distributed training, or the
                file has other input channels than the module can adapt.
        """
        adapted = dict(state)
        for path, module in self.named_modules(prefix=prefix.removesuffix('.')):
            if isinstance(module, StateDictAdapter):
                module._adapt(adapted, f'{path}.' if path else '')
        return adapted

    def _adapt(self, state: dict[str, Tensor], prefix: str) -> None:
        """Fit this module's own weights; ``state`` is changed."""
        for name, parameter in self.named_parameters(recurse=False):
            value = state.get(prefix + name)
            if value is None or value.shape == parameter.shape:
                continue
            fit = self.fit_weight(name, value.shape)
            if fit is None:
                continue  # torch reports the shapes
            if fit.error:
                raise ValueError(f'{prefix}{name}: {fit.error}')
            if fit.adopted:
                self._check_not_wrapped(name, fit)
                parameter.data = parameter.data.new_empty(value.shape)
                parameter.grad = None
                self.adopt_weight(name, fit)
            else:
                state[prefix + name] = self._adapted(name, value, fit)

    @torch.no_grad()
    def _adapted(self, name: str, value: Tensor, fit: WeightFit) -> Tensor:
        if not _is_sharded(value):
            return self.adapt_weight(name, value, fit)
        from torch.distributed.tensor import distribute_tensor  # FSDP shards the file's weights before loading

        adapted = self.adapt_weight(name, value.full_tensor(), fit)
        return distribute_tensor(adapted, value.device_mesh, value.placements)

    def _check_not_wrapped(self, name: str, fit: WeightFit) -> None:
        wrapper = 'FSDP' if _is_sharded(getattr(self, name)) else _wrapper_of(self)
        if wrapper:
            raise ValueError(
                f'the {name} of the checkpoint is for {fit.source}x{fit.source} tokens, that of the module for'
                f' {fit.target}x{fit.target}, and the module is in {wrapper} already, where shapes are fixed:'
                f' set {fit.setting} on the backbone'
            )


def _adapt_before_loading(module: StateDictAdapter, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
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
