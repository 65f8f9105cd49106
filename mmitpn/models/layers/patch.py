"""Where the resolution changes: patch embedding, merging (stride x 2) and splitting (stride / 2).

Inside the networks a map is channels-last, ``(B, H, W, C)``, so that LayerNorm and the linear layers need no permutes.
``as_map`` and ``as_tokens`` turn it into the hosts' ``(B, C, H, W)`` and back as views, without a copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import layer_norm


def as_map(x: Tensor) -> Tensor:
    """View channels-last ``(B, H, W, C)`` as a host's ``(B, C, H, W)`` (memory format ``torch.channels_last``)."""
    return x.permute(0, 3, 1, 2)


def as_tokens(x: Tensor) -> Tensor:
    """View a host's ``(B, C, H, W)`` as channels-last ``(B, H, W, C)``; copies only memory in another order."""
    return x.permute(0, 2, 3, 1).contiguous()


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad ``(B, C, H, W)`` with zeros at the right and bottom up to the next multiple of ``multiple`` pixels."""
    height, width = x.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    return F.pad(x, (0, right, 0, bottom)) if right or bottom else x


class PatchEmbed(nn.Module):
    """One convolution with kernel = stride, no norm after it.

    Args:
        in_channels: Channels of the picture.
        out_channels: Channels of the tokens.
        stride: Pixels a token covers in each direction.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 4) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel_size=stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, H / stride, W / stride, out_channels)``."""
        # The few input channels are what gets reordered, not the many output channels.
        return as_tokens(self.proj(x.contiguous(memory_format=torch.channels_last)))


class PatchMerge(nn.Module):
    """LayerNorm, then a 2x2 stride-2 convolution to twice the channels.

    Args:
        dim: Channels before; twice as many after.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.reduction = nn.Conv2d(dim, 2 * dim, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` with even H and W to ``(B, H / 2, W / 2, 2 C)``."""
        return as_tokens(self.reduction(as_map(self.norm(x))))


class PatchSplit(nn.Module):
    """LayerNorm, then a 2x2 stride-2 transposed convolution.

    The windows do not overlap, so the convolution is one matrix product whose columns are dealt out to the four places.

    Args:
        dim: Channels before.
        out_channels: Channels after.
    """

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.reduction = nn.ConvTranspose2d(dim, out_channels, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, 2 H, 2 W, out_channels)``."""
        batch, height, width, dim = x.shape
        out = self.reduction.out_channels
        weight = self.reduction.weight.permute(2, 3, 1, 0).reshape(
            4 * out, dim
        )  # rows: place (row, column), then channel
        x = F.linear(self.norm(x), weight, self.reduction.bias.repeat(4))
        x = x.view(batch, height, width, 2, 2, out).permute(0, 1, 3, 2, 4, 5)  # B, H, 2, W, 2, out
        return x.reshape(batch, 2 * height, 2 * width, out)
