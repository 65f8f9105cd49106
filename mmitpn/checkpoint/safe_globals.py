"""What a training checkpoint of mmengine holds besides tensors, so that ``torch.load(weights_only=True)`` reads it.

Since torch 2.6 ``weights_only=True`` is the default, and mmengine 0.10.7 relies on the default: without this list it
cannot resume from a file that it wrote itself. Nothing on the list can do more than build numbers and arrays.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import numpy as np
import torch

from mmitpn.optional_mmengine import HistoryBuffer

# The kinds of numbers that end up in logs, scores and data-set palettes.
_DTYPES = (
    'bool',
    'int8',
    'int16',
    'int32',
    'int64',
    'uint8',
    'uint16',
    'uint32',
    'uint64',
    'float16',
    'float32',
    'float64',
)


def _history_buffer_method(owner: Any, name: str) -> Any:
    """Stands for ``getattr`` in old checkpoints, which pickled ``HistoryBuffer.mean`` and its like by it."""
    if owner is not HistoryBuffer or name.startswith('_') or not callable(getattr(owner, name, None)):
        raise ValueError(f'a checkpoint asks for {name!r} of {owner!r}; allowed: public methods of HistoryBuffer only')
    return getattr(owner, name)


def safe_globals() -> list[Any]:
    """List the objects a training checkpoint may name, for ``torch.serialization.add_safe_globals``.

    Both spellings of numpy's module names are there (``numpy.core`` of 1.x and ``numpy._core`` of 2.x), so that a file
    written on one stack is read on the other.

    Returns:
        Objects, or pairs of an object and the full name it goes by in the file.
    """
    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    listed: list[Any] = [
        *([HistoryBuffer] if HistoryBuffer is not None else []),
        np.ndarray,
        np.dtype,
        defaultdict,
        deque,
        (_history_buffer_method, 'builtins.getattr'),
        (dict, 'builtins.dict'),  # what a defaultdict is made with
        (list, 'builtins.list'),
    ]
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        listed += [(reconstruct, f'{module}._reconstruct'), (scalar, f'{module}.scalar')]
    # dtype('int64') and its like are instances of a class of their own each; strings occur in palettes and names.
    listed += sorted({type(np.dtype(name)) for name in (*_DTYPES, 'S', 'U')}, key=lambda cls: cls.__name__)
    return listed


def register_safe_globals() -> None:
    """Let every later ``torch.load(weights_only=True)`` of this process read training checkpoints."""
    torch.serialization.add_safe_globals(safe_globals())
