"""The two feed-forward networks of Fast-iTPN, both with a LayerNorm on the hidden channels (sub-LN) where asked."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .norm import layer_norm

# Matrix products are up to a third faster where rows are so many values long, or a multiple: 682 hidden channels, those
# of the pyramid, are computed as 688, of which the last 6 are zero (and GELU leaves zero alone).
_ALIGNMENT = 16


class Mlp(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        dim: Channels in and out.
        hidden: Channels between the two layers.
        sub_norm: Whether a LayerNorm follows the GELU: stages 1 and 2 of the backbone have it, the pyramid has not.
    """

    def __init__(self, dim: int, hidden: int, *, sub_norm: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1 = nn.Linear(dim, hidden)
        self.ffn_ln = layer_norm(hidden) if sub_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)
        self._padding = 0 if sub_norm else -hidden % _ALIGNMENT

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        if not self._padding:
            return self.fc2(self.ffn_ln(F.gelu(self.fc1(x))))
        x = F.linear(x, F.pad(self.fc1.weight, (0, 0, 0, self._padding)), F.pad(self.fc1.bias, (0, self._padding)))
        return F.linear(F.gelu(x), F.pad(self.fc2.weight, (0, self._padding)), self.fc2.bias)


class SwiGLU(nn.Module):
    """``w3(LN(silu(w1 x) * w2 x))``, the feed-forward network of the main stage.

    Args:
        dim: Channels in and out.
        hidden: Channels of the two gates.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.ffn_ln = layer_norm(hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))
