"""One reader for every checkpoint: what mmengine loads, and the messages where it cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from mmitpn.checkpoint import read_checkpoint
from mmitpn.checkpoint.sharded import INDEX, META, read_index

WEB = ('http://', 'https://')
STATE = ('meta', 'message_hub')  # what mmengine takes from a checkpoint to resume, beside the weights


def register_reader() -> None:
    """Let mmengine read files as :func:`mmitpn.checkpoint.read_checkpoint` does, from now on, in this process.

    That is for ``load_from``, ``resume`` and the ``init_cfg`` of any module. Nothing in a file is executed; safetensors
    and folders of shards are read too; and a file that is no checkpoint is a ValueError of one sentence. Calling it
    again changes nothing.
    """
    CheckpointLoader.register_scheme(('', 'file://'), loader=load_from_local, force=True)
    web = CheckpointLoader._get_checkpoint_loader(WEB[0])
    if not getattr(web, 'explains', False):
        CheckpointLoader.register_scheme(WEB, loader=_explained(web), force=True)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local checkpoint; a loader of mmengine's ``CheckpointLoader``.

    Args:
        filename: Path or ``file://`` address of a file, or path of a folder of shards.
        map_location: As of ``torch.load``.

    Returns:
        What the file holds. Weights that are in no mapping of their own, as in safetensors, are in ``'state_dict'``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read; the message says what it is.
    """
    try:
        with Path(filename).expanduser().open('rb') as file:  # its name would make torch 2.14 read safetensors
            content = torch.load(file, map_location=map_location, weights_only=True)
    except Exception:  # noqa: BLE001 - the reader says what is wrong with the file, or reads it
        content = None
    return dict(content) if isinstance(content, Mapping) else _read(filename)


def _read(source: str) -> dict[str, Any]:
    content = read_checkpoint(source, allow_objects=True)  # as inert stand-ins
    raw = bool(content) and all(isinstance(value, Tensor) for value in content.values())
    return {'state_dict': content} if raw else content


def _explained(load: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of mmengine that leaves what it cannot read to our reader."""

    def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
        try:
            content = load(filename, map_location)
        except Exception:  # noqa: BLE001 - as above
            content = None
        return content if isinstance(content, Mapping) else _read(filename)

    load_from_http.explains = True
    return load_from_http


def check_training_state(checkpoint: str | os.PathLike, *, in_shards: bool = False) -> None:
    """Check that a training run can be resumed from a checkpoint, before anything is built.

    Args:
        checkpoint: File, or folder of shards.
        in_shards: Whether the run keeps its model in shards (:class:`mmitpn.FSDPStrategy`).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or has weights but no state of a training run.
    """
    path = Path(checkpoint)
    content = read_state(path)
    if path.is_dir() and not in_shards:
        raise ValueError(
            f'{path} holds the shards of a training run with FSDPStrategy, and the config has none: resume with the'
            f' config of that run (configs/_base_/fsdp.py), or start a new run from its weights: {load_from_hint(path)}'
        )
    require_state(content, checkpoint)


def read_state(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """Read what a checkpoint holds, with the values of tensors left in the file.

    Args:
        checkpoint: File, or folder of shards, of which what is beside the tensors is read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    path = Path(checkpoint)
    if path.is_dir():
        if not (path / INDEX).is_file():
            read_checkpoint(path)  # raises: a folder of other files
        read_index(path)
        path = path / META
        if not path.is_file():
            return {}
    return read_checkpoint(path, allow_objects=True, mmap=True)


def require_state(content: Mapping[str, Any], checkpoint: str | os.PathLike) -> None:
    """Raise where a checkpoint has weights but no state of a training run.

    Args:
        content: What it holds.
        checkpoint: The file, for the message.

    Raises:
        ValueError: If so.
    """
    meta = content.get('meta')
    missing = [name for name in STATE if not isinstance(content.get(name), Mapping)]
    missing += [f'meta.{name}' for name in ('epoch', 'iter') if isinstance(meta, Mapping) and name not in meta]
    if missing:
        raise ValueError(
            f'{checkpoint} holds no state of a training run ({", ".join(missing)} missing), so nothing can be resumed'
            f' from it; to start a new run from its weights: {load_from_hint(checkpoint)}, or --pretrained for files of'
            ' backbone and pyramid'
        )


def load_from_hint(checkpoint: str | os.PathLike) -> str:
    """The option that starts a new run from the weights of a checkpoint."""
    return f'--cfg-options load_from={os.fspath(checkpoint)} in place of --resume'
