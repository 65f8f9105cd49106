"""How parts of a transformer are run: in full precision, or recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def full_precision(x: Tensor) -> AbstractContextManager:
    """Switch autocast off on the device of ``x``. It casts nothing: half-precision inputs need ``.float()``."""
    return torch.autocast(device_type=x.device.type, enabled=False)


def count_recomputed(with_cp: bool | int, num_layers: int) -> int:
    """Turn ``with_cp`` into the number of leading layers whose activations are recomputed.

    Args:
        with_cp: False for none, True for all, or how many layers from the first on.
        num_layers: Layers there are.

    Raises:
        ValueError: If ``with_cp`` is none of these.
    """
    if isinstance(with_cp, bool):
        return num_layers if with_cp else 0
    if not isinstance(with_cp, int) or not 0 <= with_cp <= num_layers:
        raise ValueError(
            f'with_cp is {with_cp!r}; give True (recompute all {num_layers} layers), False (none), or how many from the'
            f' first on (0 to {num_layers})'
        )
    return with_cp


def run(layer: Callable[..., Tensor], *args: Any, recompute: bool, **kwargs: Any) -> Tensor:
    """Call ``layer``; with ``recompute``, keep only its inputs and compute it again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False, **kwargs)
    return layer(*args, **kwargs)
