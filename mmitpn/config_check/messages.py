"""How the checks name what they saw: lists of names, positions in a config, options of a command line."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


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


def numbered(part: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A part of a config, or each of a list of parts, with its position."""
    if isinstance(part, (list, tuple)):
        yield from ((f'{where}[{index}]', one) for index, one in enumerate(part) if isinstance(one, Mapping))
    elif isinstance(part, Mapping):
        yield where, part


def option_key(where: str) -> str:
    """A position in a config as ``--cfg-options`` takes it: ``a.datasets[0]`` is ``a.datasets.0``."""
    return where.replace('[', '.').replace(']', '')


def quoted(option: str) -> str:
    """An option as it is typed into a shell."""
    key, _, value = option.partition('=')
    if any(sign in value for sign in '"$`\\!'):
        return shlex.quote(option)
    return f'{key}="{value}"' if any(sign in value for sign in "([' ;&|<>*?#~{") else option
