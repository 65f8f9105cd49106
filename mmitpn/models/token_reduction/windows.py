"""Windows of equal size over a grid of tokens, and the cells that a window's gathering tokens stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class WindowGrid:
    """A grid of tokens cut into windows that all have the same size.

    Attributes:
        height: Of the grid, in tokens.
        width: Of the grid, in tokens.
        rows: Windows one above the other.
        columns: Windows side by side.
    """

    height: int
    width: int
    rows: int = 1
    columns: int = 1

    @classmethod
    def fit(cls, height: int, width: int, window_size: int) -> WindowGrid:
        """As few windows as cover the grid with sides of at most ``window_size``, made as equal as possible.

        Equal windows leave little to pad: 50x84 tokens are 4x6 windows of 13x14, where windows of 16x16 would be a
        third padding.
        """
        return cls(height, width, -(-height // window_size), -(-width // window_size))

    @property
    def tall(self) -> int:
        """Height of a window, in tokens."""
        return -(-self.height // self.rows)

    @property
    def wide(self) -> int:
        """Width of a window, in tokens."""
        return -(-self.width // self.columns)

    @property
    def number(self) -> int:
        """How many windows there are."""
        return self.rows * self.columns

    @property
    def slots(self) -> int:
        """Places for tokens in a window, padding included."""
        return self.tall * self.wide

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of padding at the lower and the right border of the grid."""
        return self.rows * self.tall - self.height, self.columns * self.wide - self.width

    def partition(self, x: Tensor) -> Tensor:
        """``(B, height, width, C)`` to ``(B, windows, slots, C)``; what is padded is zero."""
        below, right = self.padding
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        if self.number == 1:
            return x.flatten(1, 2).unsqueeze(1)
        x = x.view(x.shape[0], self.rows, self.tall, self.columns, self.wide, x.shape[-1])
        return x.transpose(2, 3).reshape(x.shape[0], self.number, self.slots, x.shape[-1])

    def merge(self, x: Tensor) -> Tensor:
        """``(B, windows, slots, C)`` back to ``(B, height, width, C)``."""
        batch, dim = x.shape[0], x.shape[-1]
        x = x.view(batch, self.rows, self.columns, self.tall, self.wide, dim).transpose(2, 3)
        x = x.reshape(batch, self.rows * self.tall, self.columns * self.wide, dim)
        return x[:, : self.height, : self.width]

    def weight(self, device: torch.device) -> Tensor | None:
        """1 for every token and 0 for padding, ``(1, windows, slots)``; None where nothing is padded."""
        if self.padding == (0, 0):
            return None
        return self.partition(torch.ones(1, self.height, self.width, 1, device=device)).squeeze(-1)

    def cut(self, number: int, *, exact: bool = True) -> tuple[int, int]:
        """Rows and columns of cells in a window, as square as they can be; ``exact=False`` may give a few fewer."""
        if not exact:
            rows = min(max(round(math.sqrt(number * self.tall / self.wide)), 1), number)
            return rows, number // rows
        best = 1
        for rows in range(2, number + 1):  # a plain loop, which compilers can follow
            if number % rows == 0 and self._stretch(rows, number // rows) < self._stretch(best, number // best):
                best = rows
        return best, number // best

    def _stretch(self, rows: int, columns: int) -> float:
        """How far from square the cells are, from 1 up."""
        ratio = self.tall * columns / (self.wide * rows)
        return max(ratio, 1 / ratio)

    def cells(self, cut: tuple[int, int], device: torch.device) -> Tensor:
        """The cell that each slot of a window lies in, ``(slots,)``."""
        row = torch.arange(self.tall, device=device) * cut[0] // self.tall
        column = torch.arange(self.wide, device=device) * cut[1] // self.wide
        return (row[:, None] * cut[1] + column).flatten()

    def middles(self, cut: tuple[int, int], device: torch.device) -> Tensor:
        """The slot in the middle of each cell, ``(cells,)``."""
        row = (2 * torch.arange(cut[0], device=device) + 1) * self.tall // (2 * cut[0])
        column = (2 * torch.arange(cut[1], device=device) + 1) * self.wide // (2 * cut[1])
        return (row[:, None] * self.wide + column).flatten()
