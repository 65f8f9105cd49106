"""How the tokens of the main stage attend to each other when they lie in windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.parts import in_parts, part_rows
from .tokens import TokenSet


class GlobalAttend:
    """Every token attends to every token; one that stands for several counts as several, and padding as none.

    Args:
        tokens: Windows and weights; the weights enter the scores by their logarithm (proportional attention, ToMe).
    """

    def __init__(self, tokens: TokenSet) -> None:
        self._bias = None if tokens.weight is None else tokens.weight.flatten(1).log()[:, None, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries, keys, values ``(B, heads, N, d)`` to the same shape."""
        bias = None if self._bias is None else self._bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, bias)


class GatheringAttend:
    """A token attends to those of its own window and to the gathering tokens of all other windows.

    A gathering token is the mean of one cell of a window: of its keys and of its values. It counts in the softmax as
    many times as its cell has tokens, so that with as many cells as tokens this is exactly global attention.

    Args:
        tokens: Windows, places and weights.
        number: Gathering tokens a window; 0: windows do not see each other.

    Attributes:
        number: Gathering tokens a window.
        others: For every window in turn the gathering tokens of the others, among those of all windows.
    """

    def __init__(self, tokens: TokenSet, number: int) -> None:
        grid, x = tokens.grid, tokens.x
        self._shape = (grid.number, x.shape[2])
        self.number = number if grid.number > 1 else 0
        own = None if tokens.weight is None else tokens.weight.log()  # B or 1, W, m
        if not self.number:
            self._bias = None if own is None else own.unsqueeze(1)
            return
        cell = grid.cells(grid.cut(number), x.device)
        cell = cell if tokens.place is None else cell[tokens.place]
        member = F.one_hot(cell, number).transpose(-1, -2).to(x.dtype)  # ..., K, m
        member = member[None, None] if tokens.place is None else member
        weighted = member if tokens.weight is None else member * tokens.weight.unsqueeze(-2)
        size = weighted.sum(-1)  # B or 1, W or 1, K
        self._pool = weighted / size.clamp(min=1).unsqueeze(-1)
        windows = torch.arange(grid.number, device=x.device)
        others = torch.stack([torch.cat((windows[:i], windows[i + 1 :])) for i in range(grid.number)])  # W, W - 1
        self.others = (others[..., None] * number + torch.arange(number, device=x.device)).flatten()
        far = size.log().expand(-1, grid.number, -1).flatten(1)[:, self.others].view(-1, grid.number, self._far)
        if own is None:
            own = far.new_zeros(1, 1, 1)
        batch = max(own.size(0), far.size(0))
        own = own.expand(batch, grid.number, x.shape[2])
        self._bias = torch.cat((own, far.expand(batch, -1, -1)), -1).unsqueeze(1)  # B or 1, 1, W, m + (W - 1) K

    @property
    def _far(self) -> int:
        return (self._shape[0] - 1) * self.number

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None = None) -> Tensor:
        """Queries, keys, values ``(B, heads, windows * m, d)`` to the same shape.

        Args:
            query: The queries.
            key: The keys.
            value: The values.
            offset: Added to the gathering tokens' keys and values, ``(2, heads, number, d)``.
        """
        step = self._heads_at_once(query)
        if step >= query.shape[1]:
            return self._attend(query, key, value, offset)
        found = torch.empty_like(query)
        for first in range(0, query.shape[1], step):
            some = slice(first, first + step)
            chosen = None if offset is None else offset[:, some]
            found[:, some] = self._attend(query[:, some], key[:, some], value[:, some], chosen)
        return found

    def _heads_at_once(self, query: Tensor) -> int:
        """Without gradients a few heads at a time: keys and values are held a second time, with the gathered ones."""
        windows, count = self._shape
        return (
            part_rows(len(query) * windows * (count + self._far) * query.shape[-1])
            if in_parts(query)
            else query.shape[1]
        )

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None) -> Tensor:
        batch, heads, _, dim = query.shape
        windows, count = self._shape
        key, value = (
            self._with_gathered(x.reshape(batch, heads, windows, count, dim), None if offset is None else offset[i])
            for i, x in enumerate((key, value))
        )
        bias = self._bias
        if bias is not None:
            bias = (
                bias.to(query.dtype).expand(-1, heads, -1, -1).flatten(1, 2).unsqueeze(2)
            )  # B or 1, heads * W, 1, keys
        query = query.reshape(batch, heads * windows, count, dim)
        return F.scaled_dot_product_attention(query, key, value, bias).view(batch, heads, windows * count, dim)

    def shares(self, query: Tensor, key: Tensor, offset: Tensor | None = None) -> Tensor:
        """Where the attention of a window goes, for those who want to look: all scores of a head are held at once.

        Args:
            query: Queries of one head, ``(B, 1, windows * m, d)``.
            key: Its keys, of the same shape.
            offset: Added to the gathering tokens' keys, ``(1, number, d)``.

        Returns:
            ``(B, windows, m, m + (windows - 1) * number)``: for every token the shares of its own window's tokens, then
            of the gathering tokens of the other windows in order. They sum to 1.
        """
        batch, heads, _, dim = query.shape
        windows, count = self._shape
        keys = self._with_gathered(key.view(batch, heads, windows, count, dim), offset)
        scores = query.view(batch, windows, count, dim) @ keys.transpose(-1, -2) / dim**0.5
        if self._bias is not None:
            scores = scores + self._bias.squeeze(1).unsqueeze(-2)
        return scores.softmax(-1)

    def _with_gathered(self, x: Tensor, offset: Tensor | None) -> Tensor:
        """Each window's own tokens and the others' gathering tokens, ``(B, heads * windows, m + ..., d)``."""
        batch, heads, windows, _, dim = x.shape
        if self.number:
            gathered = self._pool.to(x.dtype).unsqueeze(1) @ x
            if offset is not None:
                gathered = gathered + offset.to(x.dtype).unsqueeze(1)
            far = gathered.flatten(2, 3)[:, :, self.others].view(batch, heads, windows, self._far, dim)
            x = torch.cat((x, far), 3)
        return x.flatten(1, 2)
