"""Which maps MaskDINO's encoder takes, what its extra levels start from, and in what order it has them."""

from __future__ import annotations

from collections.abc import Sequence

ORDERS = ('low2high', 'high2low')


class Levels:
    """The levels of the encoder.

    Projections are numbered as in the released weights: the maps in the encoder's order, then the extra levels from
    the finer to the coarser.

    Args:
        in_channels: Channels of the maps, finest first.
        strides: Their strides.
        num_inputs: The coarsest so many of them go into the encoder.
        num_levels: Levels of the encoder.
        order: ``'low2high'`` (finest first) or ``'high2low'``.
        released: See :class:`MaskDINOPixelDecoder`.

    Attributes:
        inputs: For each projection of a map, which map.
        base: The map that the extra levels start from.
        order: The encoder's levels, as numbers of projections.
        positions: Whose position codes the encoder's levels get, in its order: ``order``, unless ``released`` has them
            in another.
        finest: Place of the finest level in ``order``.

    Raises:
        ValueError: If the numbers do not fit together.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_inputs: int,
        num_levels: int,
        order: str,
        *,
        released: bool,
    ) -> None:
        number = len(in_channels)
        if len(strides) != number or list(strides) != sorted(set(strides)) or strides[0] != 4:
            raise ValueError(
                f'the pixel decoder has strides {tuple(strides)} for maps of {tuple(in_channels)} channels; give one'
                ' stride a map, finest first, beginning with 4 (the masks are made there)'
            )
        if not isinstance(num_inputs, int) or not 1 <= num_inputs <= number:
            raise ValueError(
                f'num_inputs is {num_inputs!r}, but there are {number} maps (strides {tuple(strides)}): allowed 1 to'
                f' {number}; let the neck give more maps (num_outs), or make the other levels by num_levels'
            )
        if not isinstance(num_levels, int) or num_levels < num_inputs:
            raise ValueError(
                f'num_levels is {num_levels!r}; allowed: from num_inputs={num_inputs} on (those beyond are made by'
                ' convolutions)'
            )
        if order not in ORDERS:
            raise ValueError(f'order is {order!r}; allowed: {", ".join(map(repr, ORDERS))}')
        low2high = order == 'low2high'
        used = list(range(number - num_inputs, number))
        self.inputs = used if low2high else used[::-1]
        # The published code looks for the most channels, and takes the first where several have as many.
        widest = max(self.inputs[::-1], key=lambda i: in_channels[i])
        self.base = widest if released else used[-1]
        maps, extra = list(range(num_inputs)), list(range(num_inputs, num_levels))
        coarser_first = extra[::-1]
        if low2high:
            self.order = maps + (coarser_first if released else extra)
            self.positions = maps + extra
        else:
            self.order = coarser_first + maps
            self.positions = (extra if released else coarser_first) + maps
        self.finest = 0 if low2high else num_levels - 1
