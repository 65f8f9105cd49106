"""Plain pickles of numpy arrays by name, as detectron2's model zoo has them (``.pkl``), read without executing them.

Python's own unpickler with a closed list of names (see "Restricting Globals" in the documentation of ``pickle``):
everything else in the file is refused before it is built.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """Stands for ``codecs.encode``, by which protocol 2 writes bytes."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'bytes in the encoding {encoding!r}')
    return text.encode(encoding)


def _allowed() -> dict[tuple[str, str], Callable[..., Any]]:
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    frombuffer = np.empty(1).__reduce_ex__(5)[0]
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ('numpy', 'ndarray'): np.ndarray,
        ('numpy', 'dtype'): np.dtype,
        ('collections', 'OrderedDict'): OrderedDict,
        ('_codecs', 'encode'): _encode,
    }
    for core in ('numpy.core', 'numpy._core'):
        names[f'{core}.multiarray', '_reconstruct'] = reconstruct
        names[f'{core}.multiarray', 'scalar'] = scalar
        names[f'{core}.numeric', '_frombuffer'] = frombuffer
    return names


class _ArraysOnly(pickle.Unpickler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        """One of the names on the list."""
        found = self.names.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f'it refers to {module}.{name}, which no file of arrays needs')
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to what is outside of the pickle."""
        raise pickle.UnpicklingError(f'it refers to {pid!r} outside of itself')


def read_plain_pickle(path: Path) -> Mapping[str, Any] | None:
    """What a plain pickle of arrays holds, arrays as tensors; None for a file of another kind.

    Args:
        path: A file that starts as a pickle does.
    """
    try:
        with path.open('rb') as file:
            content = _ArraysOnly(file, encoding='latin1').load()
    except Exception:  # noqa: BLE001 (a broken pickle may raise anything: the caller says what is wrong with the file)
        return None
    if not isinstance(content, Mapping) or not _has_arrays(content):
        return None  # such as the number that files of torch.save began with before they were archives
    return _as_tensors(content)


def _has_arrays(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, Mapping) and any(map(_has_arrays, value.values())))


def _as_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_tensors(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiub':
        return torch.from_numpy(np.array(value))  # a copy: arrays of a pickle may be read-only
    return value
