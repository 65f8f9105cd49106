"""``--cfg-options`` with names and paths that hold spaces."""

from __future__ import annotations

import ast
import re
from typing import Any

from mmengine.config import DictAction as _DictAction

_AROUND_SIGNS = re.compile(r'\s*([,()\[\]])\s*')
_SPACE = '\0'


class DictAction(_DictAction):
    """mmengine's ``DictAction``, which takes the spaces out of every value, with the spaces inside names kept.

    ``"('traffic light','cat')"`` and ``"/data/my set"`` are read as they are written. A tuple or list in Python's
    syntax is read as Python does, so that ``"('0','1')"`` holds strings; anything else as mmengine does.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        """Read the value of one option.

        Args:
            val: What follows the first equals sign.

        Returns:
            A string, number, bool, None, list or tuple.
        """
        try:
            value = ast.literal_eval(val.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if isinstance(value, (list, tuple)) and val.strip()[:1] in ('(', '['):
            return value
        marked = _AROUND_SIGNS.sub(r'\1', val.strip()).replace(' ', _SPACE)
        return _restore(_DictAction._parse_iterable(marked))


def _restore(value: Any) -> Any:
    """Put the spaces back into the strings of a value."""
    if isinstance(value, str):
        return value.replace(_SPACE, ' ')
    if isinstance(value, (list, tuple)):
        return type(value)(map(_restore, value))
    return value
