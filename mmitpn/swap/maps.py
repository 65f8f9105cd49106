"""What the backbone and neck of a config hand on: found by running them, not by knowing their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmitpn.analysis.host_model import without_pretrained

SIDE = 256  # pixels of the square picture that is run through them, unless their config names a size


class Map(NamedTuple):
    """One map that the heads are given: its channels and its stride in pixels."""

    channels: int
    stride: int


def _built(cfg: Mapping[str, Any]) -> nn.Module:
    # A single process cannot run a synchronised norm.
    module = revert_sync_batchnorm(MODELS.build(ConfigDict(without_pretrained(cfg))))
    module.eval()  # not chained: the train() of some hosts' backbones returns nothing
    return module


def observe_maps(model: Mapping[str, Any]) -> list[Map]:
    """Run a model's backbone and neck on a made-up picture.

    Args:
        model: The config's part with ``backbone`` and, perhaps, ``neck``. The host's scope must be the default one.

    Returns:
        The maps that its heads are given, in order.

    Raises:
        ValueError: If they cannot be run, or give something else than a sequence of maps.
    """
    # Some transformers take no other size than the one they were built for.
    size = model['backbone'].get('img_size') or SIDE
    side = size if isinstance(size, int) else size[0]
    necks = model.get('neck') or []
    parts = [model['backbone'], *(necks if isinstance(necks, Sequence) else [necks])]
    try:
        with torch.no_grad():
            x: Any = torch.randn(2, 3, side, side)
            for part in parts:
                x = _built(part)(x)
    except Exception as error:  # noqa: BLE001 - whatever a host's module raises, the user is told what and where
        raise ValueError(f'its backbone and neck cannot be run on a picture: {type(error).__name__}: {error}') from None
    maps = [x] if isinstance(x, Tensor) else x
    if not isinstance(maps, Sequence) or not all(isinstance(one, Tensor) and one.ndim == 4 for one in maps):
        raise ValueError(f'its backbone and neck give {type(x).__name__}, not a sequence of maps (B, C, H, W)')
    return [Map(one.shape[1], round(side / one.shape[-1])) for one in maps]
