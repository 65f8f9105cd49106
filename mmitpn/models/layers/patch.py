"""Where the resolution changes: patch embedding, merging, splitting.

Inside the networks a map is channels-last, ``(B, H, W, C)``, so that LayerNorm and the linear layers need no permutes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import NormLayer, layer_norm

# --- memory order ---------------------------------------------------------------------------------------------------


def nhwc_to_nchw(x: Tensor) -> Tensor:
    """View channels-last ``(B, H, W, C)`` as ``(B, C, H, W)`` (memory format ``torch.channels_last``)."""
    return x.permute(0, 3, 1, 2)


def nchw_to_nhwc(x: Tensor) -> Tensor:
    """View ``(B, C, H, W)`` as channels-last ``(B, H, W, C)``; copies only memory in another order."""
    return x.permute(0, 2, 3, 1).contiguous()


# --- changes of resolution -----------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """One convolution with kernel = stride.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the tokens.
        stride: Pixels a token covers in each direction.
        norm_layer: Makes a LayerNorm that follows: iTPN has it, Fast-iTPN has not.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 4, norm_layer: NormLayer = nn.Identity
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel_size=stride, stride=stride)
        self.norm = norm_layer(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, H / stride, W / stride, out_channels)``."""
        # The few input channels are what gets reordered, not the many output channels.
        return self.norm(nchw_to_nhwc(self.proj(x.contiguous(memory_format=torch.channels_last))))


class ConvPatchMerging(nn.Module):
    """LayerNorm, then a 2x2 stride-2 convolution to twice the channels: Fast-iTPN's merge.

    Args:
        dim: Channels before; twice as many after.
        norm_layer: Makes the LayerNorm.
    """

    def __init__(self, dim: int, *, norm_layer: NormLayer = layer_norm) -> None:
        super().__init__()
        self.norm = norm_layer(dim)
        self.reduction = nn.Conv2d(dim, 2 * dim, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` with even H and W to ``(B, H / 2, W / 2, 2 C)``."""
        return nchw_to_nhwc(self.reduction(nhwc_to_nchw(self.norm(x))))


class PatchMerging(nn.Module):
    """Concatenate 2x2 positions, LayerNorm, then a linear layer without bias to twice the channels: iTPN's merge.

    The order of the positions, column by column, is read off the released code.

    Args:
        dim: Channels before; twice as many after.
        norm_layer: Makes the LayerNorm.
    """

    def __init__(self, dim: int, *, norm_layer: NormLayer = layer_norm) -> None:
        super().__init__()
        self.norm = norm_layer(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` with even H and W to ``(B, H / 2, W / 2, 2 C)``."""
        batch, height, width, dim = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5)  # B, H/2, W/2, column, row, C
        return self.reduction(self.norm(x.reshape(batch, height // 2, width // 2, 4 * dim)))


class PatchSplit(nn.Module):
    """LayerNorm, then a 2x2 stride-2 transposed convolution: the pyramid's way to the finer level.

    The windows do not overlap, so the convolution is one matrix product whose columns go to the four positions.

    Args:
        dim: Channels before.
        out_channels: Channels after.
        bias: Whether the convolution has one: Fast-iTPN's has, iTPN's linear layer, which is the same product, has not.
        norm_layer: Makes the LayerNorm.
    """

    def __init__(self, dim: int, out_channels: int, *, bias: bool = True, norm_layer: NormLayer = layer_norm) -> None:
        super().__init__()
        self.norm = norm_layer(dim)
        self.reduction = nn.ConvTranspose2d(dim, out_channels, kernel_size=2, stride=2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, 2 H, 2 W, out_channels)``."""
        batch, height, width, dim = x.shape
        out = self.reduction.out_channels
        weight = self.reduction.weight.permute(2, 3, 1, 0).reshape(4 * out, dim)  # rows: position, then channel
        bias = None if self.reduction.bias is None else self.reduction.bias.repeat(4)
        x = F.linear(self.norm(x), weight, bias)
        x = x.view(batch, height, width, 2, 2, out).permute(0, 1, 3, 2, 4, 5)  # B, H, 2, W, 2, out
        return x.reshape(batch, 2 * height, 2 * width, out)
