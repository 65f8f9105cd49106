"""How the checks report what they saw: one sentence a rule, lists of names, positions in a config, options."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any


def failed(*rules: tuple[Collection, str], limit: int = 8) -> list[str]:
    """The sentences of the rules that something breaks.

    Args:
        rules: What breaks each rule (nothing where it holds), and the sentence about it. ``{n}`` in the sentence is the
            number of what breaks it, ``{first}`` the first of it.
        limit: How many of it to name.

    Returns:
        list: One sentence for each broken rule, in their order.
    """
    return [
        text.replace('{n}', str(len(wrong))).replace('{first}', format_list(wrong, limit=limit))
        for wrong, text in rules
        if wrong
    ]


def format_list(items: Collection[object], *, limit: int = 8) -> str:
    """The first few items, and how many there are more."""
    shown = [repr(item) if isinstance(item, str) else str(item) for item in islice(items, limit)]
    return ', '.join(shown) + (f' and {len(items) - limit} more' if len(items) > limit else '')


def files_near(path: Path) -> str:
    """Which files of its kind the folder of a missing file has."""
    if not path.parent.is_dir():
        return f'there is no folder {path.parent}'
    near = sorted(found.name for found in path.parent.glob(f'*{path.suffix}'))
    return f'{path.parent} holds {format_list(near) if near else f"no {path.suffix} file"}'


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
