"""Any network's feature map as a teacher: mmpretrain's, timm's, or a module of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmitpn.checkpoint import read_checkpoint, unwrap_state_dict
from mmitpn.config_types import is_type, type_name
from mmitpn.registry import MODELS

from .base import IMAGENET_MEAN, IMAGENET_STD, Teacher, check_grid, renormalize


@MODELS.register_module()
class FeatureTeacher(Teacher):
    """A feature map of a trained network.

    Args:
        model: Config of a network from any registry (``dict(type='mmpretrain.ResNet', depth=50)``), ``'timm::NAME'``,
            or a module.
        weights: File or address of its weights, read weights-only; every one of the network's must be in it. None is
            allowed for a module, and for a config whose ``init_cfg`` is of type ``'Pretrained'``.
        prefix: Take only the names below this prefix of the file.
        layer: Name of the submodule whose output is the map; None: the network's own output (the last of several).
        image_size: Side in pixels that images are resized to; None: as the student sees them.
        channels: Channels of the map. Where they are given, the network is only made with the model's weights
            (``init_weights``); None: at once, and they are found by a trial.
        mean: Mean that the network's images are normalised with, of 0 to 255.
        std: Deviation that they are normalised with.
        student_mean: Mean that the student's images are normalised with.
        student_std: Deviation that they are normalised with.

    Raises:
        ValueError: If there are no weights, or they do not fit, or there is no such layer.
    """

    def __init__(
        self,
        model: str | Mapping | nn.Module,
        *,
        weights: str | None = None,
        prefix: str | None = None,
        layer: str | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        student_mean: Sequence[float] = IMAGENET_MEAN,
        student_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.name = model if isinstance(model, str) else type(model).__name__
        if isinstance(model, Mapping):
            self.name = type_name(model)
        _check_source(model, weights)
        self._source = (model, weights, prefix)  # in a tuple: a module is no part of this one before it is loaded
        self.layer, self.image_size = layer, image_size
        self.own, self.student = {'mean': mean, 'std': std}, {'mean': student_mean, 'std': student_std}
        if channels is None:
            self.load()
            side = image_size or 224
            self.channels = self._run(torch.zeros(1, 3, side, side)).shape[1]
        else:
            self.channels = channels

    def load(self) -> None:
        """Make the network and load its weights, once."""
        if self.network is not None:
            return
        model, weights, prefix = self._source
        network = self.make(model, weights)
        if weights is not None:
            _load(network, weights, prefix, self.name)
        if self.layer is not None and self.layer not in dict(network.named_modules()):
            names = ', '.join(name for name, _ in list(network.named_children())[:8])
            raise ValueError(f'the teacher {self.name} has no layer {self.layer!r}; its first are {names}')
        self.hold(network)

    @staticmethod
    def make(model: str | Mapping | nn.Module, weights: str | None) -> nn.Module:
        """The network that ``model`` names."""
        return _build(model, weights)

    def see(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, channels)``."""
        x = renormalize(images.float(), self.student, self.own)
        if self.image_size:
            x = F.interpolate(x, size=(self.image_size,) * 2, mode='bicubic', align_corners=False, antialias=True)
        found = self._run(x)
        check_grid(
            self.name,
            found.shape[2:],
            grid,
            'set image_size of the teacher to grid x stride of its map, or choose a layer of stride 16',
        )
        if found.shape[1] != self.channels:
            raise ValueError(
                f'the teacher {self.name} has {found.shape[1]} channels, not {self.channels}: set channels'
            )
        return found.permute(0, 2, 3, 1)

    @torch.no_grad()
    def _run(self, x: Tensor) -> Tensor:
        seen: list[Any] = []
        handle = None
        if self.layer is not None:
            handle = self.network.get_submodule(self.layer).register_forward_hook(lambda *args: seen.append(args[2]))
        try:
            found = self.network(x)
        finally:
            if handle is not None:
                handle.remove()
        found = seen[-1] if seen else found
        while isinstance(found, list | tuple):
            found = found[-1]
        if not isinstance(found, Tensor) or found.ndim != 4:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f'the teacher {self.name} gives {shape}; a map (B, C, H, W) is needed: choose a layer')
        return found


def _check_source(model: str | Mapping | nn.Module, weights: str | None) -> None:
    """Raise ValueError where there is no network, or none with weights."""
    if isinstance(model, str) and not model.startswith('timm::'):
        raise ValueError(f"the teacher's model is {model!r}; give 'timm::NAME', a config or a module")
    if weights is not None or isinstance(model, nn.Module):
        return
    init = {} if isinstance(model, str) else model.get('init_cfg') or {}
    pretrained = isinstance(init, Mapping) and is_type(init, 'Pretrained', 'PretrainedInit')
    if not (pretrained and init.get('checkpoint')):
        name = model if isinstance(model, str) else type_name(model)
        raise ValueError(
            f'the teacher {name} has no weights: give weights=FILE (a teacher is never random in silence;'
            " teacher='random' is for tests)"
        )


def _build(model: str | Mapping | nn.Module, weights: str | None) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, str):
        try:
            import timm
        except ImportError as error:
            raise ImportError(f'the teacher {model} needs timm: pip install timm') from error
        return timm.create_model(model.removeprefix('timm::'), pretrained=False)
    network = MODELS.build(dict(model))
    if weights is None:
        network.init_weights()
    return network


def _load(network: nn.Module, weights: str, prefix: str | None, name: str) -> None:
    state, _ = unwrap_state_dict(read_checkpoint(weights))
    if prefix:
        start = prefix.rstrip('.') + '.'
        state = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    found = network.load_state_dict(state, strict=False) if _fits(network, state) else None
    missing = list(network.state_dict()) if found is None else found.missing_keys
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    if missing:
        raise ValueError(
            f'{weights} is not for the teacher {name}: {len(missing)} of its weights are missing or of another shape'
            f' ({", ".join(missing[:3])}, ...); the file has {", ".join(list(state)[:3])}, ...'
        )


def _fits(network: nn.Module, state: Mapping[str, Any]) -> bool:
    own = network.state_dict()
    return all(own[key].shape == value.shape for key, value in state.items() if key in own)
