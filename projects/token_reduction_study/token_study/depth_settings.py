"""The settings of token reduction that are compared in a network of 12 blocks, and their equals in larger ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

DEPTH, SIDE = 12, 16
"""Blocks of the main stage, and tokens along a side of the grid, that the settings are written for."""
WINDOWS = (4, 8)
"""Sides of the windows, in tokens."""
KEEP_RATIOS = (0.75, 0.5, 0.25)
EVERY_THIRD = (2, 5, 8, 11)
"""Four global blocks among windowed ones, evenly spread: ViTDet (arXiv 2203.16527), EVA-02, RF-DETR."""


@dataclass(frozen=True)
class DepthMethod:
    """A method, before the side of its windows and the fraction of the tokens are chosen.

    Attributes:
        num_tokens: Gathering tokens per window, 0 for windows that do not see each other; None: no windows.
        global_blocks: Blocks with global attention among the windowed ones, of the 12.
        reducer: Type of ``token_migration``; None: all tokens stay.
        pool: How gathering tokens are pooled.
        windows: Sides of the windows that it is compared at.
    """

    num_tokens: int | None = None
    global_blocks: tuple[int, ...] = ()
    reducer: str | None = None
    pool: str = 'mean'
    windows: tuple[int, ...] = WINDOWS


# In the order of the tables.
DEPTH_METHODS: dict[str, DepthMethod] = {
    'global': DepthMethod(),
    'windows': DepthMethod(0),
    'windows + 4 global blocks': DepthMethod(0, EVERY_THIRD),
    'windows + 2 global blocks': DepthMethod(0, (5, 11)),
    'gathering, 1 token': DepthMethod(1),
    'gathering, 4 tokens': DepthMethod(4),
    'gathering, 8 tokens': DepthMethod(8),
    'gathering, 16 tokens': DepthMethod(16, windows=(8,)),  # all tokens of a window of 4: global attention, to the bit
    'gathering + 4 global blocks': DepthMethod(4, EVERY_THIRD),
    'gathering + 3 global blocks': DepthMethod(4, (3, 7, 11)),
    'gathering + 2 global blocks': DepthMethod(4, (5, 11)),
    # Which blocks are global: information that crosses windows early, late, or once.
    'gathering + first 2 global blocks': DepthMethod(4, (0, 1)),
    'gathering + last 2 global blocks': DepthMethod(4, (10, 11)),
    'gathering + 1 global block (5)': DepthMethod(4, (5,)),
    'gathering + 1 global block (11)': DepthMethod(4, (11,)),
    'gathering, 1 token + 2 global blocks': DepthMethod(1, (5, 11)),
    # Each window pools the gathering tokens by its mean query.
    'gathering by query, 1 token': DepthMethod(1, pool='query'),
    'gathering by query, 4 tokens': DepthMethod(4, pool='query'),
    'gathering by query, 1 token + 1 global block (11)': DepthMethod(1, (11,), pool='query'),
    'gathering by query, 1 token + 2 global blocks': DepthMethod(1, (5, 11), pool='query'),
    'migration': DepthMethod(reducer='TokenMigration'),
    'gathering + migration': DepthMethod(4, reducer='TokenMigration'),
    'ToMe': DepthMethod(reducer='TokenMerging'),
    'gathering by query, 4 tokens + migration': DepthMethod(4, reducer='TokenMigration', pool='query'),
    'gathering + ToMe': DepthMethod(4, reducer='TokenMerging'),
    'prune-then-merge': DepthMethod(reducer='PruneThenMerge'),
    # Global blocks cost less among fewer tokens: the baseline and gathering with the same tokens dropped.
    'windows + 4 global blocks + migration': DepthMethod(0, EVERY_THIRD, 'TokenMigration'),
    'gathering + 2 global blocks + migration': DepthMethod(4, (5, 11), 'TokenMigration'),
}


@dataclass(frozen=True)
class DepthSetting:
    """A method with the side of its windows and the fraction of the tokens that stay.

    Attributes:
        method: A name of ``DEPTH_METHODS``.
        window: Side of the windows in a grid of 16x16 tokens; None: no windows.
        keep_ratio: Fraction of the tokens that stay.
    """

    method: str
    window: int | None = None
    keep_ratio: float = 1.0

    @property
    def name(self) -> str:
        """Its name in tables and in files of scores."""
        windows = '' if self.window is None else f', windows of {self.window}'
        return f'{self.method}{windows}{"" if self.keep_ratio == 1 else f", keep {self.keep_ratio:g}"}'

    def backbone(self, *, depth: int = DEPTH, side: int = SIDE) -> dict[str, Any]:
        """Arguments of ``FastITPN``, or of its ``set_token_reduction``.

        In a network of another depth the global blocks are as many, at the same fractions of the depth; in a larger
        grid the windows are as many along a side, with as many gathering tokens each.

        Args:
            depth: Blocks of the main stage.
            side: Tokens along a side of the grid.

        Raises:
            ValueError: If the depth is no multiple of 12 or the grid cannot be divided.
        """
        if depth % DEPTH or side % SIDE:
            raise ValueError(
                f'depth is {depth} and side {side}; the settings are written for {DEPTH} blocks and {SIDE}x{SIDE}'
                ' tokens: give multiples of these'
            )
        method, settings = DEPTH_METHODS[self.method], {}
        if method.reducer is not None:
            settings['token_migration'] = {'type': method.reducer, 'keep_ratio': self.keep_ratio}
        if self.window is not None:
            settings['token_gathering'] = {'window_size': self.window * side // SIDE, 'num_tokens': method.num_tokens}
            if method.pool != 'mean':
                settings['token_gathering']['pool'] = method.pool
            if method.global_blocks:
                blocks = tuple((block + 1) * (depth // DEPTH) - 1 for block in method.global_blocks)
                settings['token_gathering']['global_blocks'] = blocks
        return settings


def depth_settings(
    methods: Iterable[str] = tuple(DEPTH_METHODS),
    *,
    windows: Sequence[int] = WINDOWS,
    keep_ratios: Sequence[float] = KEEP_RATIOS,
) -> list[DepthSetting]:
    """Methods at every side of the windows and every fraction of the tokens, where they have these.

    Args:
        methods: Names of ``DEPTH_METHODS``.
        windows: Sides of the windows, in a grid of 16x16 tokens.
        keep_ratios: Fractions of the tokens that stay.

    Raises:
        ValueError: If there is no such method.
    """
    found = []
    for name in methods:
        if name not in DEPTH_METHODS:
            raise ValueError(f'unknown method {name!r}; allowed: {", ".join(map(repr, DEPTH_METHODS))}')
        method = DEPTH_METHODS[name]
        sides = (None,) if method.num_tokens is None else [side for side in windows if side in method.windows]
        ratios = (1.0,) if method.reducer is None else keep_ratios
        found += [DepthSetting(name, side, ratio) for side in sides for ratio in ratios]
    return found


def find_setting(name: str) -> DepthSetting:
    """The setting of a name.

    Raises:
        ValueError: If there is none.
    """
    known = {setting.name: setting for setting in depth_settings()}
    if name not in known:
        raise ValueError(f'unknown setting {name!r}; allowed: {", ".join(map(repr, known))}')
    return known[name]
