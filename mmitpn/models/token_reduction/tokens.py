"""The tokens of the main stage between two blocks: where they lie, what they stand for, how all come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .windows import WindowGrid


@dataclass(frozen=True)
class TokenSet:
    """Tokens in windows, the same number in each.

    Attributes:
        x: The tokens that the blocks work on, ``(B, windows, m, C)``.
        grid: The windows.
        weight: How many tokens of the full grid each stands for, 0 for padding: ``(B or 1, windows, m)``; None: 1 each.
        place: Slot of the full window where each lies, ``(B, windows, m)``; None: all slots in order.
        undo: For every reduction so far, the way back: from the tokens after it to those before it.
    """

    x: Tensor
    grid: WindowGrid
    weight: Tensor | None = None
    place: Tensor | None = None
    undo: tuple[Callable[[Tensor], Tensor], ...] = ()

    @classmethod
    def of(cls, x: Tensor, grid: WindowGrid) -> TokenSet:
        """All tokens of ``(B, height, width, C)``."""
        return cls(grid.partition(x), grid, grid.weight(x.device))

    def update(self, x: Tensor) -> TokenSet:
        """The same tokens after a block."""
        return replace(self, x=x)

    def places(self) -> Tensor:
        """``place``, written out."""
        if self.place is not None:
            return self.place
        batch, windows, count, _ = self.x.shape
        return torch.arange(count, device=self.x.device).expand(batch, windows, count)

    def weights(self) -> Tensor:
        """``weight``, written out for every picture: ``(B, windows, m)``."""
        if self.weight is None:
            return self.x.new_ones(self.x.shape[:3])
        return self.weight.expand(self.x.shape[:3])

    def select(self, kept: Tensor, dropped: Tensor, *, leader: Tensor | None = None) -> TokenSet:
        """Go on with some tokens and put the others aside.

        Args:
            kept: Positions among the present tokens, ``(B, windows, k)``.
            dropped: The positions of all others, ``(B, windows, d)``.
            leader: For each of ``dropped`` the number of the kept token that it follows, ``(B, windows, d)``: that one
                counts for both meanwhile, and when it comes back, it is changed by as much as that one was. None: it
                comes back as it went.
        """
        order = torch.cat((kept, dropped), -1)
        ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
        origin = torch.empty_like(order).scatter_(-1, order, ranks)
        before, stashed = take(self.x, kept), take(self.x, dropped)

        def undo(x: Tensor) -> Tensor:
            back = stashed if leader is None else stashed + take(x - before, leader)
            return take(torch.cat((x, back), 2), origin)

        weight = None if self.weight is None else self.weights().gather(-1, kept)
        if leader is not None:
            weights = self.weights()
            weight = weights.gather(-1, kept).scatter_add(-1, leader, weights.gather(-1, dropped))
        return replace(
            self,
            x=before,
            weight=weight,
            place=self.places().gather(-1, kept),
            undo=(*self.undo, undo),
        )

    def all_back(self) -> TokenSet:
        """All tokens again, each in the slot of its window where it was."""
        x = self.x
        for undo in reversed(self.undo):
            x = undo(x)
        return TokenSet(x, self.grid, self.grid.weight(x.device))

    def restore(self) -> Tensor:
        """The full grid ``(B, height, width, C)``, every token where it was."""
        return self.grid.merge(self.all_back().x)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens ``index`` ``(B, windows, k)`` of ``x`` ``(B, windows, m, C)``, as whole rows."""
    batch, windows, count, dim = x.shape
    first = torch.arange(0, batch * windows * count, count, device=x.device).view(batch, windows, 1)
    return x.reshape(-1, dim).index_select(0, (index + first).flatten()).view(batch, windows, -1, dim)
