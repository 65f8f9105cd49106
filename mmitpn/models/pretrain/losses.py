"""How far predictions are from a teacher's targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor


def _cosine(prediction: Tensor, target: Tensor) -> Tensor:
    return -F.cosine_similarity(prediction, target, dim=-1)


def _smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(prediction, target, reduction='none').mean(-1)


def _l2(prediction: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(prediction, target, reduction='none').mean(-1)


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {'cosine': _cosine, 'smooth_l1': _smooth_l1, 'l2': _l2}


def check_loss(name: str) -> str:
    """Return the name of a loss or raise ValueError."""
    if name not in LOSSES:
        raise ValueError(f'loss is {name!r}; allowed: {", ".join(map(repr, LOSSES))}')
    return name


def distance(name: str, prediction: Tensor, target: Tensor) -> Tensor:
    """Loss of every place, ``(B, H, W)``, in fp32.

    Args:
        name: ``'cosine'`` (negative cosine similarity), ``'smooth_l1'`` or ``'l2'``, both means over channels.
        prediction: ``(B, H, W, D)``.
        target: ``(B, H, W, D)``.
    """
    return LOSSES[name](prediction.float(), target.float())


def mean_at(values: Tensor, masks: Tensor | None) -> Tensor:
    """Mean of ``(B, H, W)`` where ``masks`` is True, or of all where it is None."""
    return values.mean() if masks is None else (values * masks).sum() / masks.sum()


def layer_normed(x: Tensor) -> Tensor:
    """Targets with mean 0 and deviation 1 over their channels, in fp32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
