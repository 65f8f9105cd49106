"""Where the resolution changes: patch embedding, merging, splitting.

Inside the networks a map is channels-last, ``(B, H, W, C)``, so that LayerNorm and the linear layers need no permutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmitpn.utils import check_int

from .blocks import NormLayer, layer_norm
from .state_dict_adapter import StateDictAdapter, WeightFit

# --- memory order ---------------------------------------------------------------------------------------------------


def nhwc_to_nchw(x: Tensor) -> Tensor:
    """View channels-last ``(B, H, W, C)`` as ``(B, C, H, W)`` (memory format ``torch.channels_last``)."""
    return x.permute(0, 3, 1, 2)


def nchw_to_nhwc(x: Tensor) -> Tensor:
    """View ``(B, C, H, W)`` as channels-last ``(B, H, W, C)``; copies only memory in another order."""
    return x.permute(0, 2, 3, 1).contiguous()


# --- sizes in a graph that is traced ---------------------------------------------------------------------------------


def plain_sizes(sizes: Iterable[int]) -> tuple[int, ...]:
    """Sizes as numbers where ``torch.jit.trace`` gives tensors; the symbols of an export or a compiler stay."""
    return tuple(map(int, sizes)) if torch.jit.is_tracing() else tuple(sizes)


def is_dynamic(size: int) -> bool:
    """Whether a size is a symbol of an export or a compiler: a comparison could make it a constant of the graph."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental import symbolic_shapes

    if not hasattr(symbolic_shapes, 'has_static_value'):  # before torch 2.8
        return isinstance(size, torch.SymInt)
    return not symbolic_shapes.has_static_value(size)


# --- changes of resolution -----------------------------------------------------------------------------------------


# How the weights of a first layer are made for another number of input channels.
IN_CHANNELS_INITS = ('repeat', 'repeat_unscaled', 'copy')
_RGB = 3


class PatchConv(StateDictAdapter, nn.Conv2d):
    """The convolution of a patch embedding, which takes weights for another number of input channels.

    A file for fewer channels is adapted, and one for RGB also to one or two channels. Any other file is an error: what
    its further channels are is not known.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the tokens.
        stride: Kernel size and stride, in pixels.
        in_channels_init: One of ``IN_CHANNELS_INITS``, see :func:`adapt_in_channels`; None adapts nothing.

    Raises:
        ValueError: If ``in_channels`` or ``in_channels_init`` is not allowed.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, in_channels_init: str | None) -> None:
        check_int('in_channels', in_channels)
        if in_channels_init not in (None, *IN_CHANNELS_INITS):
            allowed = ', '.join(map(repr, IN_CHANNELS_INITS))
            raise ValueError(f'in_channels_init is {in_channels_init!r}; allowed: {allowed}, None')
        super().__init__(in_channels, out_channels, kernel_size=stride, stride=stride)
        self.in_channels_init = in_channels_init

    def fit_weight(self, name: str, shape: Sequence[int]) -> WeightFit | None:
        """See :class:`StateDictAdapter`."""
        own = self.weight.shape
        if name != 'weight' or len(shape) != 4 or shape[0] != own[0] or shape[2:] != own[2:]:
            return None
        there, here, how = shape[1], self.in_channels, self.in_channels_init
        adaptable = there < here or there == _RGB
        error = ''
        if how is None or not adaptable:
            names = ', '.join(map(repr, IN_CHANNELS_INITS))
            advice = f', or in_channels_init to one of {names} to adapt its first layer,' if adaptable else ''
            error = (
                f'the checkpoint is for {there} input channels, the module for {here}: set in_channels={there}{advice}'
                ' on the backbone'
            )
        return WeightFit(there, here, f'in_channels_init={how!r}', error=error)

    def adapt_weight(self, name: str, value: Tensor, fit: WeightFit) -> Tensor:
        """See :class:`StateDictAdapter`."""
        del name, fit
        return adapt_in_channels(value, self.in_channels, self.in_channels_init)


def adapt_in_channels(weight: Tensor, in_channels: int, how: str) -> Tensor:
    """Weights of a convolution for another number of input channels.

    Args:
        weight: ``(C, S, h, w)``, for S channels.
        in_channels: Channels wanted, N.
        how: ``'repeat'``: repeated over the channels in turn and scaled by S / N, so that the output keeps its
            magnitude, as in timm; for one channel they are summed, so that a gray image gives what it gives as RGB.
            ``'repeat_unscaled'``: repeated in turn as they are. ``'copy'``: the first S channels as they are, the
            others zero, so that the output is at first that of the first S channels alone.

    Returns:
        ``(C, N, h, w)``, at least fp32.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    channels = weight.shape[1]
    if how == 'repeat' and in_channels == 1:
        return weight.sum(1, keepdim=True)
    if how == 'copy':
        return F.pad(weight[:, :in_channels], (0, 0, 0, 0, 0, max(in_channels - channels, 0)))
    repeated = weight[:, torch.arange(in_channels, device=weight.device) % channels]
    return repeated * (channels / in_channels) if how == 'repeat' else repeated


class PatchEmbed(nn.Module):
    """One convolution with kernel = stride.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the tokens.
        stride: Pixels a token covers in each direction.
        in_channels_init: How weights for another number of channels are taken, see :class:`PatchConv`.
        norm_layer: Makes a LayerNorm that follows: iTPN has it, Fast-iTPN has not.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 4,
        in_channels_init: str | None = 'repeat',
        norm_layer: NormLayer = nn.Identity,
    ) -> None:
        super().__init__()
        self.proj = PatchConv(in_channels, out_channels, stride=stride, in_channels_init=in_channels_init)
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
