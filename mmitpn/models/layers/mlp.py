"""The two feed-forward networks of Fast-iTPN, both with a LayerNorm on the hidden channels (sub-LN) where asked."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .norm import layer_norm


class Mlp(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        dim: Channels in and out.
        hidden: Channels between the two layers.
        sub_norm: Whether a LayerNorm follows the GELU: stages 1 and 2 of the backbone have it, the pyramid has not.
    """

    def __init__(self, dim: int, hidden: int, *, sub_norm: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.ffn_ln = layer_norm(hidden) if sub_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        return self.fc2(self.ffn_ln(F.gelu(self.fc1(x))))


class SwiGLU(nn.Module):
    """``w3(LN(silu(w1 x) * w2 x))``, the feed-forward network of the main stage.

    Args:
        dim: Channels in and out.
        hidden: Channels of the two gates.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.ffn_ln = layer_norm(hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))
