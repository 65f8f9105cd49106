"""Networks as teachers: the feature map of any trained network, CLIP's image tower, the student's moving average."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from mmitpn.checkpoint import read_checkpoint, unwrap_state_dict
from mmitpn.config_types import is_type, type_name
from mmitpn.registry import MODELS
from mmitpn.utils import IMAGENET_MEAN, IMAGENET_STD

from .target_generators import Renormalize, Teacher, check_grid, record_outputs

CLIP_MEAN, CLIP_STD = (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)


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
        channels: Channels of the map. If they are given, the network is built when the model's weights are initialized
            (``init_weights``); None: it is built at once and run on zeros to find them.
        mean: Mean that the network's images are normalized with, for pixel values from 0 to 255.
        std: Standard deviation that the network's images are normalized with.
        student_mean: Mean that the student's images are normalized with, for pixel values from 0 to 255.
        student_std: Standard deviation that the student's images are normalized with.

    Raises:
        ValueError: If there are no weights, they do not fit, there is no such layer, or its output is no map.
        ImportError: If ``model`` is ``'timm::NAME'`` and timm is not installed.
        FileNotFoundError: If there is no file ``weights``.
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
        self._source = (model, weights, prefix)  # in a tuple, so that a module is no submodule of this one
        self.layer, self.image_size = layer, image_size
        self.renormalize = Renormalize({'mean': student_mean, 'std': student_std}, {'mean': mean, 'std': std})
        if channels is None:
            self.load()
            side = image_size or 224
            self.channels = self._run(torch.zeros(1, 3, side, side)).shape[1]
        else:
            self.channels = channels

    def load(self) -> None:
        """Build the network and load its weights, once."""
        if self.network is not None:
            return
        model, weights, prefix = self._source
        network = self.build_network(model, weights)
        if weights is not None:
            _load(network, weights, prefix, self.name)
        if self.layer is not None and self.layer not in dict(network.named_modules()):
            names = ', '.join(name for name, _ in list(network.named_children())[:8])
            raise ValueError(f'the teacher {self.name} has no layer {self.layer!r}; its first are {names}')
        self.register_frozen(network)

    def build_network(self, model: str | Mapping | nn.Module, weights: str | None) -> nn.Module:
        """The network that ``model`` names; ``weights`` are not loaded here."""
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

    def extract(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, channels)``."""
        x = self.renormalize(images.float())
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
                f'channels is {self.channels}, but the teacher {self.name} gives {found.shape[1]}: set channels to that'
            )
        return found.permute(0, 2, 3, 1)

    @torch.no_grad()
    def _run(self, x: Tensor) -> Tensor:
        """The map ``(B, C, H, W)`` of the layer, or of the network."""
        layer = None if self.layer is None else self.network.get_submodule(self.layer)
        with record_outputs(layer) as outputs:
            found = self.network(x)
        found = outputs[-1] if outputs else found
        while isinstance(found, list | tuple):
            found = found[-1]
        if not isinstance(found, Tensor) or found.ndim != 4:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f'the teacher {self.name} gives {shape}; a map (B, C, H, W) is needed: choose a layer')
        return found


def _check_source(model: str | Mapping | nn.Module, weights: str | None) -> None:
    """Raise ValueError if no network is named, or its weights are not."""
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


@MODELS.register_module()
class ClipTeacher(Teacher):
    """Tokens of CLIP's image tower, in the space that images and texts share.

    Fast-iTPN's teacher is CLIP-L/14, fed at 196 pixels, so that it has the 14x14 tokens of a student at 224: the
    images are resized here. Every patch token is normalized and projected as CLIP does with its class token.

    Args:
        weights: Folder with ``config.json`` and ``model.safetensors`` as transformers saves them, or the name of a
            repository of its hub, such as ``'openai/clip-vit-large-patch14'``.
        channels: Channels of its tokens, 768 for CLIP-L/14. If they are given, the weights are loaded when the model's
            are initialized (``init_weights``); None: at once.
        image_size: Side in pixels that the student's whole image is resized to; None: so that the grids match.
        project: False leaves the last projection out: tokens of the tower's own width.
        student_mean: Mean that the student's images are normalized with, of 0 to 255.
        student_std: Deviation that they are normalized with.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If there are no weights, or the folder has none.
    """

    def __init__(
        self,
        weights: str | None = None,
        *,
        channels: int | None = None,
        image_size: int | None = None,
        project: bool = True,
        student_mean: Sequence[float] = IMAGENET_MEAN,
        student_std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if not weights:
            raise ValueError(
                "the CLIP teacher has no weights: give weights=FOLDER, or a name: 'openai/clip-vit-large-patch14'"
            )
        folder = Path(weights)
        if folder.is_dir() and not any(folder.glob('*.safetensors')):
            raise ValueError(
                f'{folder} has no *.safetensors: save the model with transformers (save_pretrained), or give another'
                ' folder; pickles are not read'
            )
        self.weights, self.image_size, self.project = weights, image_size, project
        self.renormalize = Renormalize({'mean': student_mean, 'std': student_std}, {'mean': CLIP_MEAN, 'std': CLIP_STD})
        if channels is None:
            self.load()
        else:
            self.channels = channels

    def load(self) -> None:
        """Load the tower, once."""
        if self.network is not None:
            return
        try:
            from transformers import CLIPVisionModelWithProjection
        except ImportError as error:
            raise ImportError('the CLIP teacher needs transformers: pip install transformers==4.48.3') from error
        tower = CLIPVisionModelWithProjection.from_pretrained(self.weights, use_safetensors=True)
        found = tower.config.projection_dim if self.project else tower.config.hidden_size
        expected = getattr(self, 'channels', found)
        if found != expected:
            raise ValueError(
                f'the CLIP teacher {self.weights} has {found} channels, not {expected}: set channels={found}'
            )
        self.register_frozen(tower)
        self.channels = found

    def extract(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, channels)``."""
        patch = self.network.config.patch_size
        size = (self.image_size,) * 2 if self.image_size else tuple(side * patch for side in grid)
        found = [side // patch for side in size]
        check_grid(self.weights, found, grid, f'leave image_size out, or give {grid[0] * patch}')
        x = self.renormalize(images.float())
        x = F.interpolate(x, size=size, mode='bicubic', align_corners=False, antialias=True)
        tower = self.network.vision_model
        tokens = tower(pixel_values=x, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        tokens = tower.post_layernorm(tokens)
        if self.project:
            tokens = self.network.visual_projection(tokens)
        return tokens.unflatten(1, grid)


# --- the student's moving average ----------------------------------------------------------------------------------


class _CosineAverage(ExponentialMovingAverage):
    """An average whose momentum changes along a half cosine over the run.

    mmpretrain's ``CosineEMA`` needs a runner, and its momentum turns back where a run goes beyond ``max_iters``.
    mmengine's ``ExponentialMovingAverage`` reads the number of updates from the device at every one; here it is read
    once and kept as a Python number.
    """

    def __init__(self, model: nn.Module, start: float, end: float) -> None:
        super().__init__(model, momentum=1 - start)
        self.start, self.end = start, end
        self._num_updates: int | None = None  # the value of ``steps``, if it is known

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the student; the first update copies it."""
        if self._num_updates is None:
            self._num_updates = int(self.steps)
        weight = 1.0 - self._momentum(self._num_updates)
        for average, source in zip(self.module.parameters(), model.parameters(), strict=True):
            if self._num_updates:
                average.lerp_(source, weight)
            else:
                average.copy_(source)
        for average, source in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(source)
        self._num_updates += 1
        self.steps += 1

    def restart(self) -> None:
        """Let the next update copy the student."""
        self.steps.zero_()
        self._num_updates = 0

    def _momentum(self, steps: int) -> float:
        total = MessageHub.get_current_instance().runtime_info.get('max_iters')
        if not total:  # without a runner the length of the run is unknown, and the momentum constant
            return self.start
        progress = min(steps / int(total), 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._num_updates = None


@MODELS.register_module()
class MovingAverageTeacher(Teacher):
    """A moving average of the backbone that sees the whole image (arXiv 2211.12735, 3.1).

    The momentum is not published. Our interpretation: from 0.996 to 1 by a cosine over the run. The average moves at
    every training step; with gradient accumulation, once for each of its batches. It is in the checkpoints, so that a
    resumed run equals an uninterrupted one.

    Args:
        momentum: Weight of the average itself in each update, at the start of the run.
        end_momentum: The same at the end.
    """

    target_type = 'maps'

    def __init__(self, momentum: float = 0.996, end_momentum: float = 1.0) -> None:
        super().__init__()
        if not 0 < momentum <= end_momentum <= 1:
            raise ValueError(
                f'momentum is {momentum!r}, end_momentum {end_momentum!r}; allowed: 0 < momentum <= end_momentum <= 1'
            )
        self.momentum, self.end_momentum = momentum, end_momentum
        self.average: _CosineAverage | None = None

    def setup(self, backbone: nn.Module) -> None:
        """Build a network like the backbone."""
        self.average = _CosineAverage(backbone, self.momentum, self.end_momentum)
        self.average.requires_grad_(False)
        self.channels = backbone.out_channels
        self.train()

    def copy_weights(self, backbone: nn.Module) -> None:
        """Start again from the backbone's weights."""
        self.average.module.load_state_dict(backbone.state_dict())
        self.average.restart()

    def update(self, backbone: nn.Module) -> None:
        """Move towards the backbone; the first step copies it."""
        self.average.update_parameters(backbone)

    def extract(self, images: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """The stages' maps, channels last."""
        del grid
        backbone = self.average.module
        return backbone.forward_stages(backbone.patch_embed(images))
