"""Checks of settings, with one text for all classes."""

from __future__ import annotations

from typing import Any


def check_int(name: str, value: Any, *, least: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``least``; a bool is not an integer.

    Args:
        name: Name of the setting, as the user writes it.
        value: The value of the setting.
        least: Smallest allowed value.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f'{name} is {value!r}; give an integer of at least {least}')
