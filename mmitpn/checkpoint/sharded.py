"""Sharded checkpoints: folders of ``torch.distributed.checkpoint``, read without executing anything in them.

The index of such a folder is a pickle. Here it may only name the types that an index consists of, and only tensors are
read from the shards (by torch's weights-only reader).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException, metadata
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

INDEX = '.metadata'
META = 'meta.pth'  # everything that is not a tensor
METADATA = 'torch.distributed.checkpoint.metadata'  # data classes and enumerations only
_NAMES = {
    ('torch.distributed.checkpoint.filesystem', '_StorageInfo'),
    ('torch', 'Size'),
    ('torch.serialization', '_get_layout'),
    ('collections', 'OrderedDict'),
    ('pathlib', 'PosixPath'),
    ('pathlib', 'WindowsPath'),
}


class _RefusedError(pickle.UnpicklingError):
    """The index names a type that an index does not consist of."""


def _member(owner: Any, name: str) -> Enum:
    """Replaces ``getattr``, by which Python 3.11.0 to 3.11.3 pickle the members of an enumeration."""
    if isinstance(owner, type) and issubclass(owner, Enum) and name in owner.__members__:
        return owner[name]
    raise _RefusedError('builtins.getattr')


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('builtins', 'getattr'):
            return _member
        module = module.removesuffix('._local')  # of pathlib, in files written on Python 3.13
        dtype = module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        own = getattr(metadata, name, None) if module == METADATA else None
        data = isinstance(own, type) and own.__module__ == METADATA
        if dtype or data or (module, name) in _NAMES:
            return super().find_class(module, name)
        raise _RefusedError(f'{module}.{name}')


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        return read_index(self.path)


def read_index(folder: str | Path) -> Metadata:
    """Read the index of a folder of shards.

    Args:
        folder: The checkpoint.

    Returns:
        Names, shapes and offsets of the tensors.

    Raises:
        FileNotFoundError: If it has no index: it is no such folder, or was not written completely.
        ValueError: If the index holds something else, such as code.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(f'{folder} has no {INDEX}: it is not a sharded checkpoint, or not a complete one')
    try:
        with path.open('rb') as file:
            index = _IndexUnpickler(file).load()
    except _RefusedError as error:
        raise ValueError(
            f'{path} is not read: it refers to {error}, which no index needs; only use files that you trust'
        ) from error
    except Exception as error:
        raise ValueError(
            f'{path} cannot be read as the index of a checkpoint in shards: it is cut off, damaged or of another kind'
            f' ({_first_line(error)})'
        ) from error
    found = getattr(index, 'state_dict_metadata', None)
    if found is None:
        raise ValueError(f'{path} is not the index of a sharded checkpoint: it holds a {type(index).__name__}')
    other = [name for name, entry in found.items() if not isinstance(entry, TensorStorageMetadata)]
    if other:
        raise ValueError(f'{folder} holds more than tensors ({", ".join(other[:3])}), which is not read')
    return index


def _first_line(error: BaseException) -> str:
    return str(error).partition('\n')[0] or type(error).__name__


def load_sharded(state: Mapping[str, Any], folder: str | Path, *, alone: bool = False) -> None:
    """Fill tensors, also sharded ones, from a folder of shards.

    Args:
        state: Tensors by name, in dicts; filled in place.
        folder: The checkpoint.
        alone: This process reads without the others of its group.

    Raises:
        FileNotFoundError: If the folder has no index.
        ValueError: If a tensor is not in it or of another shape, or a shard is missing or damaged.
    """
    try:
        dcp.load(dict(state), storage_reader=_Reader(folder), no_dist=alone)
    except CheckpointException as failure:
        error = next(iter(failure.failures.values()))[0]
        raise ValueError(
            f'{folder} cannot be read: a part is missing, cut off or damaged, or does not fit ({_first_line(error)})'
        ) from failure


def read_sharded(folder: str | Path) -> dict[str, Tensor]:
    """Read a model's weights, on the CPU, from a folder of shards in one process, however many processes wrote it.

    Args:
        folder: A checkpoint of ``FSDPStrategy(checkpoints='sharded')``.

    Returns:
        The complete weights by name.

    Raises:
        FileNotFoundError: If the folder has no index.
        ValueError: If the index has more than tensors, or a shard is missing or damaged.
    """
    start = 'model.'
    found = read_index(folder).state_dict_metadata
    weights = {
        name.removeprefix(start): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if name.startswith(start)
    }
    load_sharded({start[:-1]: weights}, folder, alone=True)
    return weights
