"""The normalisation of the whole family."""

from __future__ import annotations

from torch import nn


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm over the last (channel) dimension with the family's epsilon, 1e-6 (read off the released code)."""
    return nn.LayerNorm(dim, eps=1e-6)
