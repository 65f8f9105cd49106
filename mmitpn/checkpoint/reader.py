"""Read a checkpoint file without executing anything in it.

Pickles are read by torch's weights-only reader. Objects that are not weights (training arguments, log histories, numpy
scalars) become inert placeholders: a few known types always, all others only on request (``allow_objects``). This
module also lists what a training checkpoint of mmengine may name (:func:`register_safe_globals`).
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import numpy as np
import torch

from mmitpn.checkpoint.sharded import INDEX, META, read_sharded
from mmitpn.optional_mmengine import HistoryBuffer
from mmitpn.weights.download import download_file, is_web_page, resolve_weights
from mmitpn.weights.zoo import advise_on_missing

ALLOW_OBJECTS_ENV = 'MMITPN_ALLOW_OBJECTS'
_TRUE, _FALSE = ('1', 'true', 'yes', 'on'), ('', '0', 'false', 'no', 'off')
_READ_ERRORS = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, UnpicklingError),
)


class _DamagedError(ValueError):
    """The file is not, or no longer, a checkpoint."""


class _RefusedError(ValueError):
    """The file holds objects that are not read."""


def read_checkpoint(
    source: str | os.PathLike, *, allow_objects: bool | None = None, mmap: bool = False
) -> dict[str, Any]:
    """Read the contents of a checkpoint file, on the CPU.

    The format is recognized by the contents of the file, never by its extension.

    Args:
        source: Path, ``file://`` or ``http(s)://`` address of a file written by ``torch.save`` or safetensors, or of
            detectron2's pickle of arrays (``.pkl``); path of a folder of shards (see
            :func:`mmitpn.checkpoint.sharded.read_sharded`); or weights by name, ``fast-itpn-b``, ``mmitpn://NAME`` or
            ``hf://OWNER/NAME/FILE`` (see :func:`mmitpn.weights.resolve_weights`). A file of an address is kept below
            ``torch.hub.get_dir()``.
        allow_objects: What to do with a pickle that holds objects of types that training checkpoints do not usually
            contain. False: raise. True: read its weights and replace those objects by inert placeholders. Either way
            nothing in the file is executed. None: the environment variable ``MMITPN_ALLOW_OBJECTS`` (0 or 1, unset is
            0).
        mmap: Leave the values in the file until they are used, so that reading shapes is cheap. The file must not
            change meanwhile. Files of torch before 1.6 are read completely.

    Returns:
        The mapping in the file: tensors, containers and plain values as they are, other objects as placeholders.

    Raises:
        FileNotFoundError: If there is no such file, or it cannot be downloaded.
        ValueError: If the file is empty, damaged, cut off, no checkpoint at all, or has objects that are not allowed;
            if it is a safetensors file and safetensors is not installed; or if a name is unknown, or the size or hash
            of its file is not the one on record.
        ImportError: If the file has to be downloaded, and gdown is not installed.
        OSError: If there is no space for the download.
    """
    path, is_download = _fetch(source)
    if path.is_dir():
        beside = read_checkpoint(path / META, allow_objects=True) if (path / META).is_file() else {}
        return {**beside, 'state_dict': read_sharded(path)}
    try:
        content = _read(path, str(source), _objects_allowed(allow_objects), mmap=mmap)
    except _DamagedError as error:
        if is_download:  # or every later attempt would find the same broken copy
            path.unlink(missing_ok=True)
        removed = '; the broken download was removed' if is_download else ''
        raise ValueError(f'{error}{removed}') from error.__cause__
    if isinstance(content, Mapping):
        return dict(content)
    what = 'a pickled object' if isinstance(content, _Placeholder) else f'a {type(content).__name__}'
    raise ValueError(f'{source} holds {what}, not weights by name: save model.state_dict() instead')


def _objects_allowed(allow_objects: bool | None) -> bool:
    if allow_objects is not None:
        return bool(allow_objects)
    value = os.environ.get(ALLOW_OBJECTS_ENV, '').strip().lower()
    if value not in _TRUE + _FALSE:
        raise ValueError(f'the environment variable {ALLOW_OBJECTS_ENV} is {value!r}; allowed: 0 or 1')
    return value in _TRUE


# --- from an address to a local file -----------------------------------------------------------------------------


def _fetch(source: str | os.PathLike) -> tuple[Path, bool]:
    """The local file of a path, name or address, and whether it is the copy of an address."""
    text = os.fspath(resolve_weights(source))
    scheme = urlparse(text).scheme.lower() if '://' in text else ''
    if scheme in ('http', 'https'):
        return _download(text), True
    if scheme not in ('', 'file'):
        raise ValueError(
            f'{text}: checkpoints are read from a path, a file://, http:// or https:// address, mmitpn:// or hf://'
        )
    path = Path(url2pathname(urlparse(text).path)) if scheme else Path(text).expanduser()
    if path.is_dir() and not (path / INDEX).is_file():
        inside = ', '.join(sorted(p.name for p in path.iterdir())[:5]) or 'nothing'
        raise ValueError(f'{path} is a folder (holding {inside}): give the checkpoint file in it')
    if not path.exists():
        raise FileNotFoundError(f'checkpoint {path} does not exist (seen from {Path.cwd()}){advise_on_missing(text)}')
    return path, False


def _download(url: str) -> Path:
    name = Path(unquote(urlparse(url).path)).name or 'checkpoint'
    folder = Path(torch.hub.get_dir()) / 'checkpoints' / 'mmitpn'
    # Different files of one name are common (pytorch_model.bin), so the local name contains a hash of the address.
    path = folder / f'{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}'
    if not path.is_file():
        advice = 'check the address and the network, or download it elsewhere and give its path'
        download_file(url, path, label=f'checkpoint {url}', advice=advice)
    return path


# --- file formats ------------------------------------------------------------------------------------------------


def _read(path: Path, source: str, allow_objects: bool, *, mmap: bool) -> Any:
    """Recognize the format by the first bytes, and read the file."""
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(512)
    if not head:
        raise _DamagedError(f'{source} is empty (0 bytes): download or save it again')
    if head.startswith(b'version https://git-lfs'):
        raise _DamagedError(f'{source} is a git-lfs pointer, not the weights: run `git lfs pull` in its repository')
    if is_web_page(head):
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
        elif (content := read_array_pickle(path)) is not None:
            return content
        return _read_torch(path, source, allow_objects, mmap=mmap and head.startswith(b'PK'))
    except (_DamagedError, _RefusedError):
        raise
    except _READ_ERRORS as error:
        raise _DamagedError(
            f'{source} cannot be read as a checkpoint ({size:,} bytes): it is cut off, damaged or of another kind '
            f'({_reason(error)}); download or save it again'
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error, without torch's advice to execute what is in the file."""
    text = str(error).split('WeightsUnpickler error:')[-1].strip()
    if 'Unsupported operand' in text:
        return "a pickle protocol other than torch.save's own"
    return text.splitlines()[0] if text else type(error).__name__


def _read_safetensors(path: Path, source: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise _RefusedError(f'{source} is a safetensors file; to read it: pip install safetensors') from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


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


# --- files of torch.save -----------------------------------------------------------------------------------------

# Types that training scripts, and mmengine, store beside the weights (these and those of `safe_globals`): always read
# as placeholders.
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
# torch names the global that it stops at in one of these two ways.
_BLOCKED = re.compile(r'unsupported GLOBAL (\S+) whose module')
_UNKNOWN = re.compile(r'Unsupported global: GLOBAL (\S+) was not')


class _Placeholder:
    """Replaces an object of a pickle that is not a weight: accepts any arguments and state, and ignores them."""

    dump_patches = False

    def __init__(self, *args: object) -> None:
        del args

    def __setstate__(self, state: object) -> None:
        del state

    def __setitem__(self, key: object, value: object) -> None:
        del key, value


def _placeholder_attribute(*args: object) -> type[_Placeholder]:
    """Replaces ``getattr``, by which a pickle refers to a method: the result may be called, and does nothing."""
    del args
    return _Placeholder


def _read_torch(path: Path, source: str, allow_objects: bool, *, mmap: bool) -> Any:
    """Read by torch's weights-only reader, with placeholders for the harmless types and, if allowed, for all others."""
    listed = (
        entry if isinstance(entry, tuple) else (entry, f'{entry.__module__}.{entry.__qualname__}')
        for entry in safe_globals()
    )
    names = {*_HARMLESS, *(name for _, name in listed)}
    # torch 2.14 reads a path by its extension, but not an open file, which cannot be memory-mapped.
    misnamed = path.name.endswith('.safetensors')
    while True:
        try:
            with _placeholders(names), warnings.catch_warnings(), path.open('rb') as file:
                warnings.filterwarnings('ignore', message='Detected pickle protocol')  # the error below says so
                input_file = file if misnamed else str(path)
                return torch.load(input_file, map_location='cpu', weights_only=True, mmap=mmap and not misnamed)
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
                    f'environment variable {ALLOW_OBJECTS_ENV}=1: every such object is replaced by an inert placeholder'
                    ' and nothing in the file is executed'
                ) from error
            names.add(name)


@contextmanager
def _placeholders(names: set[str]) -> Iterator[None]:
    """Let torch's weights-only reader replace these globals, and no others, by placeholders."""
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()  # what others allow to be built is not needed for reading weights
    replacements = {**dict.fromkeys(sorted(names), _Placeholder), 'builtins.getattr': _placeholder_attribute}
    torch.serialization.add_safe_globals([(replacement, name) for name, replacement in replacements.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(registered)


# --- numpy arrays in pickles -------------------------------------------------------------------------------------


def _numpy_globals() -> dict[str, Any]:
    """How numpy's arrays and scalars are named in a pickle, by numpy 1.x (``numpy.core``) and 2.x (``numpy._core``)."""
    names: dict[str, Any] = {'numpy.ndarray': np.ndarray, 'numpy.dtype': np.dtype}
    for core in ('numpy.core', 'numpy._core'):
        names[f'{core}.multiarray._reconstruct'] = np.empty(0).__reduce__()[0]
        names[f'{core}.multiarray.scalar'] = np.float64(0).__reduce__()[0]
    return names


def read_array_pickle(path: Path) -> Mapping[str, Any] | None:
    """Read a plain pickle of numpy arrays by name, as in detectron2's model zoo (``.pkl``), without executing it.

    Python's own unpickler with a closed list of names (see "Restricting Globals" in the documentation of ``pickle``):
    anything else in the file is refused before it is built.

    Args:
        path: A file that starts as a pickle does.

    Returns:
        The contents, arrays as tensors; None for a file of another kind.
    """
    try:
        with path.open('rb') as file:
            content = _ArrayUnpickler(file, encoding='latin1').load()
    except Exception:  # noqa: BLE001 (a broken pickle may raise anything: the caller says what is wrong with the file)
        return None
    if not isinstance(content, Mapping) or not _has_arrays(content):
        return None  # such as the number that files of torch.save began with before they were archives
    return _to_tensors(content)


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        frombuffer = np.empty(1).__reduce_ex__(5)[0]  # of protocol 5, which torch.save does not write
        self.names: dict[str, Callable[..., Any]] = {
            **_numpy_globals(),
            **{f'{core}.numeric._frombuffer': frombuffer for core in ('numpy.core', 'numpy._core')},
            'collections.OrderedDict': OrderedDict,
            '_codecs.encode': _encode,
        }

    def find_class(self, module: str, name: str) -> Any:
        """One of the names on the list."""
        found = self.names.get(f'{module}.{name}')
        if found is None:
            raise UnpicklingError(f'it refers to {module}.{name}, which no file of arrays needs')
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to what is outside of the pickle."""
        raise UnpicklingError(f'it refers to {pid!r} outside of itself')


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """Replaces ``codecs.encode``, by which protocol 2 writes bytes."""
    if encoding != 'latin1':
        raise UnpicklingError(f'bytes in the encoding {encoding!r}')
    return text.encode(encoding)


def _has_arrays(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, Mapping) and any(map(_has_arrays, value.values())))


def _to_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_tensors(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in 'fiub':
        return torch.from_numpy(np.array(value))  # a copy: arrays of a pickle may be read-only
    return value


# --- what torch.load(weights_only=True) may build from a training checkpoint --------------------------------------

# The kinds of numbers that occur in logs, scores and color palettes of datasets.
_DTYPES = (
    *('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
    *('float16', 'float32', 'float64'),
)


def safe_globals() -> list[Any]:
    """List the objects a training checkpoint of mmengine may name, for ``torch.serialization.add_safe_globals``.

    Since torch 2.6 ``weights_only=True`` is the default, and mmengine 0.10.7 relies on the default: without this list
    it cannot resume from a file that it wrote itself. The objects on the list only build numbers and arrays.

    Returns:
        Objects, or pairs of an object and its full name in the file.
    """
    listed: list[Any] = [
        *([HistoryBuffer] if HistoryBuffer is not None else []),
        *((value, name) for name, value in _numpy_globals().items()),
        defaultdict,
        deque,
        (_history_buffer_method, 'builtins.getattr'),
        (dict, 'builtins.dict'),  # what a defaultdict is made with
        (list, 'builtins.list'),
    ]
    # dtype('int64') and the like are instances of a class of their own each; strings occur in palettes and names.
    listed += sorted({type(np.dtype(name)) for name in (*_DTYPES, 'S', 'U')}, key=lambda cls: cls.__name__)
    return listed


def register_safe_globals() -> None:
    """Let every later ``torch.load(weights_only=True)`` of this process read training checkpoints."""
    torch.serialization.add_safe_globals(safe_globals())


def _history_buffer_method(owner: Any, name: str) -> Any:
    """Replaces ``getattr`` in old checkpoints, which refer to methods such as ``HistoryBuffer.mean`` by it."""
    if owner is not HistoryBuffer or name.startswith('_') or not callable(getattr(owner, name, None)):
        raise ValueError(f'a checkpoint asks for {name!r} of {owner!r}; allowed: public methods of HistoryBuffer only')
    return getattr(owner, name)
