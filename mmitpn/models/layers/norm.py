"""The normalisation of the whole family."""

from __future__ import annotations

from torch import nn

# Read off the released code. The original iTPN's detection and segmentation forms use PyTorch's own default.
EPS, EPS_ITPN = 1e-6, 1e-5


def layer_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm over the last (channel) dimension with Fast-iTPN's epsilon."""
    return nn.LayerNorm(dim, eps=EPS)


def set_norm_eps(root: nn.Module, eps: float) -> None:
    """Give every LayerNorm below ``root`` another epsilon."""
    for module in root.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
