"""Checkpoints of which every process holds a part: folders of ``torch.distributed.checkpoint``, read without pickles.

torch keeps the index of such a folder as a pickle and reads it as one. Here it may name nothing but what an index is
made of, and only tensors are read from the parts (torch reads those weights-only).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

INDEX = '.metadata'
METADATA = 'torch.distributed.checkpoint.metadata'  # data classes and enumerations only
_NAMES = {
    ('torch.distributed.checkpoint.filesystem', '_StorageInfo'),
    ('torch', 'Size'),
    ('torch.serialization', '_get_layout'),
    ('collections', 'OrderedDict'),
    ('pathlib', 'PosixPath'),
    ('pathlib', 'WindowsPath'),
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        own = getattr(metadata, name, None) if module == METADATA else None
        data = isinstance(own, type) and own.__module__ == METADATA
        if dtype or data or (module, name) in _NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'{module}.{name}')


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        return read_index(self.path)


def read_index(folder: str | Path) -> Metadata:
    """Read the index of a folder of shards.

    Args:
        folder: The checkpoint.

    Returns:
        Names, shapes and places of what it holds.

    Raises:
        FileNotFoundError: If it has no index: it is no such folder, or was not written to its end.
        ValueError: If the index holds something else, such as code.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise FileNotFoundError(f'{folder} has no {INDEX}: it is no checkpoint of shards, or not written to its end')
    try:
        with path.open('rb') as file:
            index = _IndexUnpickler(file).load()
    except Exception as error:
        said = f'{path} is not read, since an index holds no {error}'
        raise ValueError(f'{said}; only use files that you trust') from error
    other = [name for name, what in index.state_dict_metadata.items() if not isinstance(what, TensorStorageMetadata)]
    if other:
        raise ValueError(f'{folder} holds more than tensors ({", ".join(other[:3])}), which is not read')
    return index


def load_sharded(state: Mapping[str, Any], folder: str | Path, *, alone: bool = False) -> None:
    """Fill tensors, also sharded ones, from a folder of shards.

    Args:
        state: Tensors by name, in dicts; filled in place.
        folder: The checkpoint.
        alone: This process reads without the others of its group.
    """
    dcp.load(dict(state), storage_reader=_Reader(folder), no_dist=alone)


def read_sharded(folder: str | Path) -> dict[str, Tensor]:
    """Read a model's weights from a folder of shards, in one process, whatever number of processes wrote it.

    Args:
        folder: The checkpoint, as :class:`mmitpn.FSDPStrategy` writes it.

    Returns:
        Weights by name, on the CPU.
    """
    start = 'model.'
    found = read_index(folder).state_dict_metadata
    weights = {
        name.removeprefix(start): torch.empty(what.size, dtype=what.properties.dtype)
        for name, what in found.items()
        if name.startswith(start)
    }
    load_sharded({start[:-1]: weights}, folder, alone=True)
    return weights
