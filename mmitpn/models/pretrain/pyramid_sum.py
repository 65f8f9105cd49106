"""The sum of the pyramid's levels at stride 16: what the teacher's tokens are predicted from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers import layer_norm, nchw_to_nhwc, nhwc_to_nchw

EMBEDS = ('conv', 'places')


class PyramidSum(nn.Module):
    """Each level's patches become tokens, and these are added up.

    Args:
        in_channels: Channels of the levels, F.
        channels: Channels of the tokens; with ``'places'`` a multiple of 16.
        embed: ``'conv'``: LayerNorm and a convolution with kernel = stride = 1, 2, 4 for strides 16, 8, 4 (Fast-iTPN);
            ``'places'``: LayerNorm and a linear layer to ``channels`` / 1, 4, 16 at every place, side by side (iTPN).
    """

    def __init__(self, in_channels: int, channels: int, *, embed: str = 'conv') -> None:
        super().__init__()
        if embed not in EMBEDS:
            raise ValueError(f'embed is {embed!r}; allowed: {", ".join(map(repr, EMBEDS))}')
        self.embed = embed
        self.layers = nn.ModuleList()
        for side in (1, 2, 4):
            if embed == 'conv':
                layer: nn.Module = nn.Conv2d(in_channels, channels, kernel_size=side, stride=side)
            else:
                layer = nn.Linear(in_channels, channels // side**2)
            self.layers.append(nn.Sequential(layer_norm(in_channels), layer))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels ``(B, F, H_i, W_i)`` at strides 4, 8, 16 to tokens ``(B, h, w, channels)``."""
        total: Tensor | None = None
        for (norm, layer), level in zip(self.layers, reversed(levels), strict=True):
            x = norm(nchw_to_nhwc(level))
            if self.embed == 'conv':
                x = nchw_to_nhwc(layer(nhwc_to_nchw(x)))
            else:
                x = side_by_side(layer(x), level.shape[2:], levels)
            total = x if total is None else total + x
        return total


def side_by_side(x: Tensor, sides: Sequence[int], levels: Sequence[Tensor]) -> Tensor:
    """The places of each patch, row by row, as one token: ``(B, h p, w p, c)`` to ``(B, h, w, p p c)``."""
    height, width = levels[-1].shape[2:]
    places = sides[0] // height
    x = x.view(len(x), height, places, width, places, -1).transpose(2, 3)
    return x.reshape(len(x), height, width, -1)


def spread(masks: Tensor, places: int) -> Tensor:
    """Masks ``(B, h, w)`` for a level with ``places`` tokens along a patch's side."""
    return masks.repeat_interleave(places, 1).repeat_interleave(places, 2)
