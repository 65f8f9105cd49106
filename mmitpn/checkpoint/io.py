"""Read a checkpoint file without executing anything in it.

Pickles are read by torch's weights-only reader. Objects that are no weights (training arguments, log histories, numpy
scalars) become inert stand-ins: a few known types always, all others only when asked for by ``allow_objects``.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import warnings
import zipfile
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import torch
from filelock import FileLock

from mmitpn.checkpoint.plain_pickle import read_plain_pickle
from mmitpn.checkpoint.safe_globals import safe_globals
from mmitpn.checkpoint.sharded import INDEX, META, read_sharded

ALLOW_OBJECTS_ENV = 'MMITPN_ALLOW_OBJECTS'
_TRUE, _FALSE = ('1', 'true', 'yes', 'on'), ('', '0', 'false', 'no', 'off')

# Stored by training scripts beside the weights, and by mmengine (the names below and those of `safe_globals`): all of
# these are read as stand-ins without being asked.
_HARMLESS = (
    'argparse.Namespace',
    'builtins.slice',
    'mmengine.config.config.Config',
    'mmengine.config.config.ConfigDict',
    'mmengine.logging.history_buffer.HistoryBuffer',  # where mmengine is not installed
    *(
        f'{module}.{name}'
        for module in ('pathlib', 'pathlib._local')  # the second one in files written on Python 3.13
        for name in ('Path', 'PosixPath', 'PurePosixPath', 'PureWindowsPath', 'WindowsPath')
    ),
)
# torch names the global it stops at in one of these two ways.
_BLOCKED = re.compile(r'unsupported GLOBAL (\S+) whose module')
_UNKNOWN = re.compile(r'Unsupported global: GLOBAL (\S+) was not')
_HTML = (b'<!doctype', b'<!--', b'<html', b'<head', b'<?xml', b'<error')
_READ_ERRORS = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, UnpicklingError),
)


class Inert:
    """Stands for an object of a pickle that is no weight: takes whatever it is given and does nothing with it."""

    dump_patches = False

    def __init__(self, *args: object) -> None:
        del args

    def __setstate__(self, state: object) -> None:
        del state

    def __setitem__(self, key: object, value: object) -> None:
        del key, value


def _attribute(*args: object) -> type[Inert]:
    """Stands for ``getattr``, by which a pickle refers to a method: what is found may be called, and is inert."""
    del args
    return Inert


def read_checkpoint(
    source: str | os.PathLike, *, allow_objects: bool | None = None, mmap: bool = False
) -> dict[str, Any]:
    """Read what a checkpoint file holds, on the CPU.

    What a file is, is told by its contents and never by its extension.

    Args:
        source: Path, ``file://`` or ``http(s)://`` address of a file written by ``torch.save`` or safetensors, or of
            detectron2's pickle of arrays (``.pkl``); or path of a folder of shards (see
            :func:`mmitpn.checkpoint.sharded.read_sharded`). A file from the web is kept below ``torch.hub.get_dir()``.
        allow_objects: What to do with a pickle that holds objects of other types than trainings usually store.
            False: raise. True: read its weights and put inert stand-ins in place of those objects. Either way nothing
            in the file is executed. None: the environment variable ``MMITPN_ALLOW_OBJECTS`` (0 or 1, unset is 0).
        mmap: Leave the values in the file until they are used, so that looking at shapes is cheap. The file must not
            change meanwhile. Files of torch before 1.6 are read whole.

    Returns:
        The mapping in the file: tensors, containers and plain values as they are, other objects as stand-ins.

    Raises:
        FileNotFoundError: If there is no such file, or it cannot be downloaded.
        ValueError: If the file is empty, damaged, cut off, no checkpoint at all, or holds objects that are not allowed.
    """
    path, is_copy = _fetch(source)
    if path.is_dir():
        beside = read_checkpoint(path / META, allow_objects=True) if (path / META).is_file() else {}
        return {**beside, 'state_dict': read_sharded(path)}
    try:
        content = _read(path, str(source), _objects_allowed(allow_objects), mmap=mmap)
    except _DamagedError as error:
        if is_copy:  # or every later try would find the same broken copy
            path.unlink(missing_ok=True)
        raise ValueError(f'{error}{"; the broken download was removed" if is_copy else ""}') from error.__cause__
    if isinstance(content, Mapping):
        return dict(content)
    what = 'a pickled object' if isinstance(content, Inert) else f'a {type(content).__name__}'
    raise ValueError(f'{source} holds {what}, not weights by name: save model.state_dict() instead')


class _DamagedError(ValueError):
    """The file is not, or no longer, a checkpoint."""


def _objects_allowed(allow_objects: bool | None) -> bool:
    if allow_objects is not None:
        return bool(allow_objects)
    value = os.environ.get(ALLOW_OBJECTS_ENV, '').strip().lower()
    if value not in _TRUE + _FALSE:
        raise ValueError(f'the environment variable {ALLOW_OBJECTS_ENV} is {value!r}; allowed: 0 or 1')
    return value in _TRUE


def _fetch(source: str | os.PathLike) -> tuple[Path, bool]:
    """The local file of a path or address, and whether it is our copy of a download."""
    text = os.fspath(source)
    scheme = urlparse(text).scheme.lower() if '://' in text else ''
    if scheme in ('http', 'https'):
        return _download(text), True
    if scheme not in ('', 'file'):
        raise ValueError(f'{text}: checkpoints are read from a path or a file://, http:// or https:// address')
    path = Path(url2pathname(urlparse(text).path)) if scheme else Path(text).expanduser()
    if path.is_dir() and not (path / INDEX).is_file():
        inside = ', '.join(sorted(p.name for p in path.iterdir())[:5]) or 'nothing'
        raise ValueError(f'{path} is a folder (holding {inside}): give the checkpoint file in it')
    if not path.exists():
        raise FileNotFoundError(f'checkpoint {path} does not exist (seen from {Path.cwd()})')
    return path, False


def _download(url: str) -> Path:
    name = Path(unquote(urlparse(url).path)).name or 'checkpoint'
    folder = Path(torch.hub.get_dir()) / 'checkpoints' / 'mmitpn'
    folder.mkdir(parents=True, exist_ok=True)
    # Different files of one name are common (pytorch_model.bin), so the address is part of ours.
    path = folder / f'{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}'
    with FileLock(f'{path}.lock'):  # one process of a machine downloads, the others wait for it
        if not path.is_file():
            try:
                torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
            except (URLError, TimeoutError, ConnectionError) as error:
                raise FileNotFoundError(
                    f'checkpoint {url} cannot be downloaded ({error}): check the address and the network, '
                    'or download it elsewhere and give its path'
                ) from error
    return path


def _read(path: Path, source: str, allow_objects: bool, *, mmap: bool) -> Any:
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(512)
    text = head.removeprefix(BOM_UTF8).lstrip().lower()
    if not head:
        raise _DamagedError(f'{source} is empty (0 bytes): download or save it again')
    if head.startswith(b'version https://git-lfs'):
        raise _DamagedError(f'{source} is a git-lfs pointer, not the weights: run `git lfs pull` in its repository')
    if text.startswith(_HTML):
        raise _DamagedError(
            f'{source} is a web page, not the weights (a log-in or preview page?): download the file itself'
        )
    try:
        if len(head) > 8 and head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 2**27:
            return _read_safetensors(path, source)
        if head.startswith(b'PK'):
            if not zipfile.is_zipfile(path):
                raise EOFError('the end of the archive is missing')
            _check_archive(path, source)
        elif not head.startswith(b'\x80'):
            raise _DamagedError(
                f'{source} is not a checkpoint: it starts with {head[:24]!r}; '
                'give a file written by torch.save or a .safetensors file'
            )
        elif (content := read_plain_pickle(path)) is not None:
            return content
        return _load_pickle(path, source, allow_objects, mmap=mmap and head.startswith(b'PK'))
    except (_DamagedError, _RefusedError):
        raise
    except _READ_ERRORS as error:
        raise _DamagedError(
            f'{source} cannot be read as a checkpoint ({size:,} bytes): it is cut off, damaged or of another kind '
            f'({_reason(error)}); download or save it again'
        ) from error


def _read_safetensors(path: Path, source: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise _RefusedError(f'{source} is a safetensors file, which "pip install safetensors" reads') from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _reason(error: Exception) -> str:
    """The first line of an error, without torch's advice to execute what is in the file."""
    text = str(error).split('WeightsUnpickler error:')[-1].strip()
    if 'Unsupported operand' in text:
        return "a pickle protocol other than torch.save's own"
    return text.splitlines()[0] if text else type(error).__name__


def _check_archive(path: Path, source: str) -> None:
    with zipfile.ZipFile(path) as archive:
        names = [name.split('/', 1)[-1] for name in archive.namelist()]
    if 'constants.pkl' in names:
        raise _DamagedError(
            f'{source} is a TorchScript program, not weights by name: give the state dict it was made from'
        )
    if 'data.pkl' not in names:
        raise _DamagedError(
            f'{source} is an archive (of {", ".join(names[:3])}, ...), not a checkpoint: unpack it first'
        )


class _RefusedError(ValueError):
    """The file holds objects that are not read."""


def _load_pickle(path: Path, source: str, allow_objects: bool, *, mmap: bool) -> Any:
    listed = (
        entry if isinstance(entry, tuple) else (entry, f'{entry.__module__}.{entry.__qualname__}')
        for entry in safe_globals()
    )
    names = {*_HARMLESS, *(name for _, name in listed)}
    # torch 2.14 takes a path for what its name says, but not an open file, from which nothing can be mapped.
    misnamed = path.name.endswith('.safetensors')
    while True:
        try:
            with _stand_ins(names), warnings.catch_warnings(), path.open('rb') as file:
                warnings.filterwarnings('ignore', message='Detected pickle protocol')  # the error below says so
                source_ = file if misnamed else str(path)
                return torch.load(source_, map_location='cpu', weights_only=True, mmap=mmap and not misnamed)
        except UnpicklingError as error:
            blocked, unknown = _BLOCKED.search(str(error)), _UNKNOWN.search(str(error))
            if blocked:
                raise _RefusedError(
                    f'{source} refers to {blocked[1]}, which no checkpoint needs: it may want to run commands on your '
                    'machine, so it is not read. Get the weights from a source you trust'
                ) from error
            if not unknown:
                raise
            name = unknown[1] if '.' in unknown[1] else f'builtins.{unknown[1]}'
            if not allow_objects or name in names:
                raise _RefusedError(
                    f'{source} holds an object of type {name} beside the weights, which is not read by default. If you '
                    f'trust where the file comes from, read it with allow_objects=True (in init_cfg too) or set the '
                    f'environment variable {ALLOW_OBJECTS_ENV}=1: an inert stand-in takes the place of every such '
                    'object and nothing in the file is executed'
                ) from error
            names.add(name)


@contextmanager
def _stand_ins(names: set[str]) -> Iterator[None]:
    """Let torch's weights-only reader put ``Inert`` in place of these globals, and of nothing else."""
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # what others allow to be built is not needed for reading weights
    stand_ins = {**dict.fromkeys(sorted(names), Inert), 'builtins.getattr': _attribute}
    torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(registered)
