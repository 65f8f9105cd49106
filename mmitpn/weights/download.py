"""From the name of weights to a file on this machine: the cache, the download, and the check of what is in the file.

gdown transfers, resumes and retries; here a file gets its final name only when it is complete and checked. A file that
was put into the cache by hand is used as a downloaded one is.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import logging
import os
import sys
import zipfile
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlparse

from filelock import FileLock

from mmitpn.atomic import write_atomic
from mmitpn.utils import config_folder
from mmitpn.weights.zoo import SCHEME, WEIGHTS, WeightsEntry, find_weights

HOME = 'MMITPN_HOME'
HUGGING_FACE = 'hf://'
SCHEMES = tuple(prefix.removesuffix('://') for prefix in (SCHEME, HUGGING_FACE))
TIMEOUT = (10, 30)  # seconds until a connection, and without a byte
RETRIES = 3  # after a cut connection; each resumes
_HTML = (b'<!doctype', b'<!--', b'<html', b'<head', b'<?xml', b'<error')
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOGGER = logging.getLogger('mmitpn')


def cache_folder() -> Path:
    """The folder of what mmitpn downloads: the environment variable ``MMITPN_HOME``, or ``~/.cache/mmitpn``."""
    return Path(os.environ.get(HOME) or '~/.cache/mmitpn').expanduser().absolute()


def resolve_weights(source: str | os.PathLike, *, recheck: bool = False) -> str | os.PathLike:
    """Turn a name of weights into a local file, which is downloaded if it is not here.

    Args:
        source: A name of the table (``fast-itpn-b``), unless a file of that name is in the current folder;
            ``mmitpn://NAME``; or ``hf://OWNER/NAME/FILE`` (``hf://OWNER/NAME@REVISION/FILE``) for a public file on
            Hugging Face. ``HF_ENDPOINT`` names another server.
        recheck: Compute the hash again, also of a file that has not changed since it was last computed.

    Returns:
        Path of the file. Anything else, such as a path or a URL, is returned as it is.

    Raises:
        ValueError: If the name is unknown, or the size or hash of the file is not the one on record.
        FileNotFoundError: If the file is not here and cannot be downloaded; the message says where to get it and where
            to put it.
        ImportError: If the file has to be downloaded, and gdown is not installed.
        OSError: If there is no space for it, or the cache cannot be written.
    """
    wanted = _parse(source)
    if wanted is None:
        return source
    if not wanted.path.is_file():
        if wanted.address is None:
            raise FileNotFoundError(f'{wanted.label} is not here: {wanted.advice}')
        check = partial(_check, wanted)
        download_file(wanted.address, wanted.path, label=wanted.label, advice=wanted.advice, check=check)
    if wanted.entry is None or wanted.entry.shipped is None:  # what is shipped is as safe as the package
        _check(wanted, wanted.path, recheck=recheck)
    return wanted.path


def find_local_file(source: str | os.PathLike) -> Path | None:
    """Where the file of a name lies, or is to be put; None for a source that is no name (see :func:`resolve_weights`).

    Raises:
        ValueError: If the name is unknown.
    """
    wanted = _parse(source)
    return None if wanted is None else wanted.path


# --- names -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """A file that has a name.

    Attributes:
        label: What messages call it.
        path: Where it lies, or is to be put.
        address: Where it is downloaded from; None where a program cannot get it.
        advice: What to do where it cannot be downloaded.
        entry: Its row of the table.
    """

    label: str
    path: Path
    address: str | None
    advice: str
    entry: WeightsEntry | None = None


def _parse(source: str | os.PathLike) -> _Wanted | None:
    if not isinstance(source, str):
        return None
    if source.startswith(HUGGING_FACE):
        return _on_hugging_face(source)
    if source.startswith(SCHEME) or (source in WEIGHTS and not Path(source).exists()):
        return _in_table(find_weights(source))
    return None


def _in_table(entry: WeightsEntry) -> _Wanted:
    if entry.shipped is not None:
        path = config_folder() / entry.shipped
        return _Wanted(entry.name, path, None, f'it comes with mmitpn as {path}: install mmitpn again', entry)
    path = cache_folder() / 'weights' / entry.local_file
    file = entry.file or 'the file'
    advice = f'get {file} from {" or ".join(entry.sources)}, and put it at {path}'
    if entry.address is None:
        advice = f'only a browser gets it: {advice}'
    return _Wanted(entry.name, path, entry.address, advice, entry)


def _on_hugging_face(source: str) -> _Wanted:
    owner, _, rest = source.removeprefix(HUGGING_FACE).partition('/')
    repository, _, file = rest.partition('/')
    name, _, revision = repository.partition('@')
    if not (owner and name and file) or '..' in PurePosixPath(rest).parts:
        raise ValueError(f'{source} names no file on Hugging Face; write {HUGGING_FACE}OWNER/NAME/FILE')
    path = cache_folder() / 'weights' / 'hf' / owner / repository / file
    endpoint = (os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')
    address = f'{endpoint}/{owner}/{name}/resolve/{quote(revision or "main", safe="")}/{quote(file)}'
    advice = (
        'check the name and the network, or put the file at'
        f' {path} (a private or gated one needs a log-in, as by `hf download`)'
    )
    return _Wanted(source, path, address, advice)


# --- the check of a file ---------------------------------------------------------------------------------------------


def read_record(path: Path) -> dict[str, Any]:
    """What was recorded beside a file when it was checked: ``sha256``, ``bytes``, ``mtime_ns``; empty if nothing."""
    try:
        content = json.loads(_record_of(path).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _record_of(path: Path) -> Path:
    return path.with_name(f'{path.name}.json')


def _check(wanted: _Wanted, file: Path, *, recheck: bool = False) -> None:
    """Compare a file with what is known of it: the table, or else the record of its first use.

    Args:
        wanted: What it should be.
        file: Where it is now: at its final path, or beside it, when it was just downloaded.
        recheck: Compute the hash in any case.

    Raises:
        ValueError: If it is another file.
    """
    entry, record, stat = wanted.entry, read_record(wanted.path), file.stat()
    sha256 = (entry.sha256 if entry else None) or record.get('sha256')
    seen = {'sha256': sha256, 'bytes': stat.st_size, 'mtime_ns': stat.st_mtime_ns}
    if record == seen and not recheck:
        return
    wrong = f'{file} is not {wanted.label}'
    remedy = 'remove it, or give its path in place of the name if you trust it'
    if file != wanted.path:
        wrong, remedy = f'what was downloaded is not {wanted.label}, and was removed', wanted.advice
    with file.open('rb') as opened:
        head = opened.read(512)
    if is_web_page(head):
        raise ValueError(f'{wrong}: it is a web page (a log-in or quota page?); {remedy}')
    if entry and entry.bytes not in (None, stat.st_size):
        raise ValueError(
            f'{wrong}: it has {stat.st_size:,} bytes in place of {entry.bytes:,} ({entry.recorded_by}); {remedy}'
        )
    if head.startswith(b'PK') and not zipfile.is_zipfile(file):
        raise ValueError(f'{wrong}: it is cut off ({stat.st_size:,} bytes); {remedy}')
    seen['sha256'] = _sha256(file)
    if sha256 not in (None, seen['sha256']):
        known = (
            entry.recorded_by if entry and entry.sha256 else f'recorded at its first use in {_record_of(wanted.path)}'
        )
        raise ValueError(f'{wrong}: its SHA-256 is {seen["sha256"]} in place of {sha256} ({known}); {remedy}')
    try:
        write_atomic(_record_of(wanted.path), json.dumps(seen).encode())
    except OSError as error:  # a cache that is shared and read-only
        _LOGGER.debug('the hash of %s is not recorded: %s', file, error)


def is_web_page(head: bytes) -> bool:
    """Whether the first bytes of a file are those of HTML or XML, as of a log-in page that came in its place."""
    return head.removeprefix(BOM_UTF8).lstrip().lower().startswith(_HTML)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open('rb') as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- the download ----------------------------------------------------------------------------------------------------


def download_file(
    address: str, path: Path, *, label: str, advice: str, check: Callable[[Path], None] | None = None
) -> None:
    """Download a file, unless it is there; of several processes of a machine one downloads and the others wait.

    What an interrupted download left beside ``path`` is resumed.

    Args:
        address: ``https://`` address; one of Google Drive is followed through its confirmation pages.
        path: Final name. Its folder is created.
        label: What messages call the file.
        advice: What to do where it cannot be downloaded, for the message.
        check: Raises a ValueError if the complete file, whose path it gets, is not the one that was wanted.

    Raises:
        FileNotFoundError: If it cannot be downloaded.
        OSError: If there is no space for it, or the folder cannot be written.
        ValueError: Of ``check``.
        ImportError: If gdown is not installed.
    """
    try:
        import requests
        from gdown.exceptions import DownloadError
    except ModuleNotFoundError as error:
        raise ImportError(f'{label} is downloaded by gdown: pip install gdown', name='gdown') from error

    unchecked = path.with_name(f'{path.name}.unchecked')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{path}.lock'):
            if path.is_file():
                return
            _transfer(address, unchecked, label)
            with unchecked.open('rb') as file:
                page = is_web_page(file.read(512))
            if page:
                unchecked.unlink()
                raise DownloadError(f'{urlparse(address).hostname} sent a web page in place of the file')
            try:
                if check is not None:
                    check(unchecked)
            except ValueError:
                unchecked.unlink()
                raise
            unchecked.chmod(0o644)  # gdown's temporary files are readable by their owner only
            unchecked.replace(path)
    except (requests.RequestException, DownloadError) as error:
        reason = _reason(error, address)
        if any(part.stat().st_size for part in _parts(unchecked)):
            reason += '; trying again resumes it'
        raise FileNotFoundError(f'{label} cannot be downloaded ({reason}): {advice}') from error
    except OSError as error:
        if error.errno in _FULL:
            problem = f'no space for {label} in {path.parent}: make room'
        else:
            problem = f'{label} cannot be written into {path.parent} ({error.strerror or error}): make it writable'
        raise OSError(error.errno, f'{problem}, or set {HOME} to another folder') from error


def _transfer(address: str, unchecked: Path, label: str) -> None:
    """Download to ``unchecked``; what is left of an interrupted download is used if the server can resume it."""
    import gdown

    left = {part: part.stat().st_size for part in _parts(unchecked)}
    with _progress_bar(label) as progress:
        options = {'quiet': True, 'use_cookies': False, 'resume': True, 'progress': progress}
        options |= {'timeout': TIMEOUT, 'retries': RETRIES}
        try:
            gdown.download(address, str(unchecked), **options)
        except gdown.exceptions.DownloadError as error:
            # A refused resumption: the server has another file, or cannot send a part of one.
            refused = type(error) is gdown.exceptions.DownloadError and error.__cause__ is None
            if not refused or not left or any(not part.exists() or part.stat().st_size != left[part] for part in left):
                raise
            for part in left:
                part.unlink()
            gdown.download(address, str(unchecked), **options)


def _parts(unchecked: Path) -> list[Path]:
    """What gdown left of an interrupted download."""
    return list(unchecked.parent.glob(f'{glob.escape(unchecked.name)}*.part'))


def _reason(error: Exception, address: str) -> str:
    """Why a download failed, in a few words."""
    import requests

    cause = error.__cause__ or error  # gdown's error after several tries has the last one's as its cause
    host = urlparse(address).hostname
    if isinstance(cause, requests.HTTPError):
        return f'HTTP Error {cause.response.status_code}'
    if isinstance(cause, requests.ReadTimeout):
        return f'no answer from {host} for {TIMEOUT[1]} seconds'
    if isinstance(cause, requests.ConnectionError):
        return f'no connection to {host}'
    text = ' '.join(str(error).split())
    if text.startswith('Failed to retrieve file url: '):
        text = text.removeprefix('Failed to retrieve file url: ').split(' You may still be able')[0]
        page = 'it sent a page, for a log-in or of its quota, in place of the file'
        text = f'Google Drive: {page if text.startswith("Cannot retrieve the public link") else text}'
    return text.split('. The received bytes')[0].rstrip('.')


@contextmanager
def _progress_bar(label: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """A callback that draws bytes, rate and remaining time on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn('{task.description}'), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = None

        def show(received: int, total: int | None) -> None:
            nonlocal task
            if task is None:  # with what an earlier download left, which is no part of the rate
                task = bar.add_task(label, completed=received, total=total)
            bar.update(task, completed=received, total=total)

        yield show
