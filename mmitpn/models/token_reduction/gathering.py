"""Token gathering: attention in windows, and a few tokens a window that carry its content to all others."""

from __future__ import annotations

from collections.abc import Sequence

from .migration import check_blocks
from .windows import WindowGrid


class TokenGathering:
    """Settings of token gathering.

    The paper (arXiv 2211.12735, 3.2) says that few gathering tokens replace global attention by attention in windows;
    the rest is our reading. Windows are as few as sides of at most ``window_size`` allow, and all of one size, the
    smallest that covers the grid; what lies beyond the grid is padding, which nobody attends to. The gathering tokens
    of a window are the means of the keys and of the values of its ``num_tokens`` cells; they count in the softmax with
    the number of tokens they stand for. So they need no parameters, any released checkpoint runs with them, and where
    the grid is one window the block is the global one, to the bit.

    Args:
        depth: Blocks of the main stage.
        window_size: Largest side of a window, in tokens of 16 pixels.
        num_tokens: Gathering tokens of a window, at most ``window_size ** 2``; 0: windows do not see each other.
        global_blocks: Blocks of the main stage that keep global attention.
        learned: Add an offset, 0 at first, to the gathering tokens' keys and values, for every windowed block: the
            backbone's ``blocks.N.attn.gathering_offset``.

    Raises:
        ValueError: If an argument is outside what is allowed.
    """

    def __init__(
        self,
        depth: int,
        *,
        window_size: int = 16,
        num_tokens: int = 4,
        global_blocks: Sequence[int] = (),
        learned: bool = False,
    ) -> None:
        if isinstance(window_size, bool) or not isinstance(window_size, int) or window_size < 1:
            raise ValueError(f'window_size is {window_size!r}; allowed: whole numbers of tokens from 1')
        if isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or not 0 <= num_tokens <= window_size**2:
            raise ValueError(
                f'num_tokens is {num_tokens!r}; allowed: 0 to {window_size**2}, what a window of {window_size}x'
                f'{window_size} tokens holds'
            )
        self.window_size = window_size
        self.num_tokens = num_tokens
        self.global_blocks = check_blocks(global_blocks, depth, 'global_blocks')
        self.learned_blocks = (
            tuple(i for i in range(depth) if i not in self.global_blocks) if learned and num_tokens else ()
        )

    def windows(self, height: int, width: int) -> WindowGrid:
        """The windows of a grid of tokens; one where no block would use them."""
        return WindowGrid.fit(height, width, self.window_size)
