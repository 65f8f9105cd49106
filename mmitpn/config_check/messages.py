"""How the checks name what they saw."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def format_list(items: Iterable[object], *, limit: int = 8) -> str:
    """The first few items, and how many there are more."""
    shown = [repr(item) if isinstance(item, str) else str(item) for item in items]
    more = f' and {len(shown) - limit} more' if len(shown) > limit else ''
    return ', '.join(shown[:limit]) + more


def did_you_mean(name: str, options: Sequence[str]) -> str:
    """' (did you mean ...?)' with the nearest option, or nothing."""
    folded = {option.casefold(): option for option in reversed(options)}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f' (did you mean {folded[near[0]]!r}?)' if near else ''


def as_tuple(names: Sequence[str]) -> str:
    """Names as they are written into a config, with the comma that makes one name a tuple."""
    return f'({", ".join(map(repr, names))}{"," if len(names) == 1 else ""})'
