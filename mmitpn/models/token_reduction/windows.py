"""Windows of equal size over a grid of tokens, and the tokens in them: where they are, what they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class WindowPartition:
    """A grid of tokens cut into windows that all have the same size.

    There are as few windows as cover the grid with sides of at most ``window_size``, made as equal as possible: 50x84
    tokens are 4x6 windows of 13x14, where windows of 16x16 would be a third padding.

    Attributes:
        height: Of the grid, in tokens.
        width: Of the grid, in tokens.
        window_size: Largest side of a window, in tokens; None: the grid is one window.
    """

    height: int
    width: int
    window_size: int | None = None

    def _split(self, side: int) -> tuple[int, int]:
        """Number of windows along a side, and tokens along that side of each: plain numbers of a dynamic side too."""
        if self.window_size is None:
            return 1, side
        if side % self.window_size == 0:
            return side // self.window_size, self.window_size
        count = -(-side // self.window_size)
        return count, -(-side // count)

    @property
    def rows(self) -> int:
        """Windows one above the other."""
        return self._split(self.height)[0]

    @property
    def columns(self) -> int:
        """Windows side by side."""
        return self._split(self.width)[0]

    @property
    def window_h(self) -> int:
        """Height of a window, in tokens."""
        return self._split(self.height)[1]

    @property
    def window_w(self) -> int:
        """Width of a window, in tokens."""
        return self._split(self.width)[1]

    @property
    def num_windows(self) -> int:
        """How many windows there are."""
        return self.rows * self.columns

    @property
    def tokens_per_window(self) -> int:
        """Tokens per window, padding included."""
        return self.window_h * self.window_w

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of padding at the lower and the right border of the grid."""
        return self.rows * self.window_h - self.height, self.columns * self.window_w - self.width

    def partition(self, x: Tensor) -> Tensor:
        """``(B, height, width, C)`` to ``(B, windows, tokens_per_window, C)``; padding is zero."""
        below, right = self.padding
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        if self.num_windows == 1:
            return x.flatten(1, 2).unsqueeze(1)
        x = x.view(x.shape[0], self.rows, self.window_h, self.columns, self.window_w, x.shape[-1])
        x = x.transpose(2, 3).reshape(x.shape[0], self.num_windows, self.tokens_per_window, x.shape[-1])
        return x.expand(-1, -1, self.tokens_per_window, -1)  # which the view of a dynamic grid does not know

    def merge(self, x: Tensor) -> Tensor:
        """``(B, windows, tokens_per_window, C)`` back to ``(B, height, width, C)``."""
        batch, dim = x.shape[0], x.shape[-1]
        x = x.view(batch, self.rows, self.columns, self.window_h, self.window_w, dim).transpose(2, 3)
        x = x.reshape(batch, self.rows * self.window_h, self.columns * self.window_w, dim)
        return x[:, : self.height, : self.width]

    def weight(self, device: torch.device) -> Tensor | None:
        """1 for every token and 0 for padding, ``(1, windows, tokens_per_window)``; None where nothing is padded."""
        if self.padding == (0, 0):
            return None
        return self.partition(torch.ones(1, self.height, self.width, 1, device=device)).squeeze(-1)

    def cut(self, num_cells: int, *, exact: bool = True) -> tuple[int, int]:
        """Rows and columns of cells in a window, as square as they can be; ``exact=False`` may give a few fewer."""
        if not exact:
            rows = min(max(round(math.sqrt(num_cells * self.window_h / self.window_w)), 1), num_cells)
            return rows, num_cells // rows
        best = 1
        for rows in range(2, num_cells + 1):  # a plain loop, which compilers can follow
            if num_cells % rows == 0 and self._stretch(rows, num_cells // rows) < self._stretch(
                best, num_cells // best
            ):
                best = rows
        return best, num_cells // best

    def _stretch(self, rows: int, columns: int) -> float:
        """How far from square the cells are, from 1 up."""
        ratio = self.window_h * columns / (self.window_w * rows)
        return max(ratio, 1 / ratio)

    def diagonals(self, positions: Tensor) -> Tensor:
        """Row plus column of positions in a window, without a remainder, which ONNX lacks for sizes that change."""
        rows = positions // self.window_w
        return rows + positions - rows * self.window_w

    def cells(self, cut: tuple[int, int], device: torch.device) -> Tensor:
        """The cell of each position in a window, ``(tokens_per_window,)``."""
        row = torch.arange(self.window_h, device=device) * cut[0] // self.window_h
        column = torch.arange(self.window_w, device=device) * cut[1] // self.window_w
        return (row[:, None] * cut[1] + column).flatten()

    def middles(self, cut: tuple[int, int], device: torch.device) -> Tensor:
        """The position in the middle of each cell, ``(cells,)``."""
        row = (2 * torch.arange(cut[0], device=device) + 1) * self.window_h // (2 * cut[0])
        column = (2 * torch.arange(cut[1], device=device) + 1) * self.window_w // (2 * cut[1])
        return (row[:, None] * self.window_w + column).flatten()


@dataclass(frozen=True)
class WindowedTokens:
    """The tokens of the main stage between two blocks, in windows, the same number in each.

    Attributes:
        x: The tokens that the blocks work on, ``(B, windows, m, C)``.
        grid: The windows.
        weight: How many tokens of the full grid each stands for, 0 for padding: ``(B or 1, windows, m)``; None: 1 each.
        index: Position of each token in its full window, row by row, ``(B, windows, m)``; None: all positions in order.
        unmerge: For every reduction so far, the way back: from the tokens after it to those before it.
    """

    x: Tensor
    grid: WindowPartition
    weight: Tensor | None = None
    index: Tensor | None = None
    unmerge: tuple[Callable[[Tensor], Tensor], ...] = ()

    @classmethod
    def of(cls, x: Tensor, grid: WindowPartition) -> WindowedTokens:
        """All tokens of ``(B, height, width, C)``."""
        return cls(grid.partition(x), grid, grid.weight(x.device))

    def update(self, x: Tensor) -> WindowedTokens:
        """The same tokens after a block."""
        return replace(self, x=x)

    def positions(self) -> Tensor:
        """``index``, written out."""
        if self.index is not None:
            return self.index
        batch, windows, count, _ = self.x.shape
        return torch.arange(count, device=self.x.device).expand(batch, windows, count)

    def weights(self) -> Tensor:
        """``weight``, written out for every image: ``(B, windows, m)``."""
        if self.weight is None:
            return self.x.new_ones(self.x.shape[:3])
        return self.weight.expand(self.x.shape[:3])

    def select(self, kept: Tensor, dropped: Tensor, *, nearest_kept: Tensor | None = None) -> WindowedTokens:
        """Continue with some tokens and put the others aside.

        Args:
            kept: Indices among the present tokens, ``(B, windows, k)``.
            dropped: The indices of all others, ``(B, windows, d)``.
            nearest_kept: For each of ``dropped`` the index in ``kept`` of the token whose updates it receives,
                ``(B, windows, d)``; this kept token counts for both meanwhile. None: dropped tokens return unchanged.

        Returns:
            The kept tokens ``(B, windows, k, C)``, with the way back to all of them.
        """
        order = torch.cat((kept, dropped), -1)
        ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
        origin = torch.empty_like(order).scatter_(-1, order, ranks)
        before, stashed = gather_tokens(self.x, kept), gather_tokens(self.x, dropped)

        def unmerge(x: Tensor) -> Tensor:
            back = stashed if nearest_kept is None else stashed + gather_tokens(x - before, nearest_kept)
            return gather_tokens(torch.cat((x, back), 2), origin)

        weight = None if self.weight is None else self.weights().gather(-1, kept)
        if nearest_kept is not None:
            weights = self.weights()
            weight = weights.gather(-1, kept).scatter_add(-1, nearest_kept, weights.gather(-1, dropped))
        return replace(
            self,
            x=before,
            weight=weight,
            index=self.positions().gather(-1, kept),
            unmerge=(*self.unmerge, unmerge),
        )

    def restore_all(self) -> WindowedTokens:
        """All tokens again, each at its position in its window."""
        x = self.x
        for unmerge in reversed(self.unmerge):
            x = unmerge(x)
        return WindowedTokens(x, self.grid, self.grid.weight(x.device))

    def restore(self) -> Tensor:
        """The full grid ``(B, height, width, C)``, every token where it was."""
        return self.grid.merge(self.restore_all().x)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """The tokens ``(B, windows, k, C)`` of ``x`` ``(B, windows, m, C)`` at ``index`` ``(B, windows, k)``."""
    batch, windows, count, dim = x.shape
    first = torch.arange(0, batch * windows * count, count, device=x.device).view(batch, windows, 1)
    return x.reshape(-1, dim).index_select(0, (index + first).flatten()).view(batch, windows, -1, dim)
