"""Weights by name, against a local server: complete, cut off, another file, a page, a full disk, no network."""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmitpn.weights import cache_folder, download, find_local_file, find_weights, resolve_weights, zoo

CONTENT = bytes(range(256)) * 4096  # 1 MB
HALF = 1 << 19  # gdown writes blocks of this many bytes
HASH = hashlib.sha256(CONTENT).hexdigest()
NAME = 'fast-itpn-b'
ENTRY = find_weights(NAME)
FILE = ENTRY.file
QUOTA = '<html><p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></html>'
LOGIN = '<html><body>Sign in</body></html>'


@pytest.fixture
def known(monkeypatch):
    """The hash and the size of CONTENT in the table."""
    entry = replace(ENTRY, sha256=HASH, bytes=len(CONTENT))
    monkeypatch.setitem(zoo.WEIGHTS, NAME, entry)


@pytest.fixture
def unknown(monkeypatch):
    """Neither hash nor size in the table."""
    monkeypatch.setitem(zoo.WEIGHTS, NAME, replace(ENTRY, sha256=None, bytes=None, recorded_by=None))


def files(folder: Path) -> list[str]:
    """What is in the cache, but the lock."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith('.lock'))


# --- names -----------------------------------------------------------------------------------------------------------


def test_anything_else_is_returned_as_it_is(tmp_path):
    Path('fast-itpn-b').touch()  # a file of that name in the current folder
    for source in ('weights.pth', 'https://x.org/f.pth', Path('fast-itpn-s'), tmp_path, 'fast-itpn-b', 'fast-itpn-x'):
        assert resolve_weights(source) is source
        assert find_local_file(source) is None


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"no weights are called 'fast-itpn-bb'; the nearest are fast-itpn-b,"):
        resolve_weights('mmitpn://fast-itpn-bb')
    with pytest.raises(ValueError, match=r'known: fast-itpn-t, fast-itpn-s'):
        find_weights('resnet50')
    assert find_weights('mmitpn://fast-itpn-b') is find_weights(FILE) is ENTRY


@pytest.mark.parametrize('source', ['hf://owner', 'hf://owner/name', 'hf://owner/name/', 'hf://owner/name/../../f'])
def test_an_address_of_hugging_face_that_names_no_file(source):
    with pytest.raises(ValueError, match='write hf://OWNER/NAME/FILE'):
        resolve_weights(source)


def test_the_cache(monkeypatch):
    assert find_local_file(NAME) == cache_folder() / 'weights' / FILE
    assert find_local_file('itpn-b-clip').name == 'itpn-b-clip.pth'  # the authors' file name is unknown
    monkeypatch.delenv('MMITPN_HOME')
    assert cache_folder() == Path.home() / '.cache' / 'mmitpn'


# --- downloads -------------------------------------------------------------------------------------------------------


def test_a_download_from_google_drive(server, cache, known):
    server.files[ENTRY.google] = CONTENT
    assert resolve_weights(NAME) == cache / FILE
    assert (cache / FILE).read_bytes() == CONTENT
    assert (cache / FILE).stat().st_mode & 0o777 == 0o644
    assert download.read_record(cache / FILE)['sha256'] == HASH
    assert files(cache) == [FILE, f'{FILE}.json']
    assert resolve_weights(f'mmitpn://{NAME}') == cache / FILE
    assert server.asked == [(ENTRY.google, None)]


def test_an_interrupted_download_is_resumed(server, cache, known):
    server.files[ENTRY.google] = CONTENT
    server.cut = [HALF + 10]
    with pytest.raises(
        FileNotFoundError,
        match=r'incomplete: received 524288 bytes.*1048576 bytes; trying again resumes it\).*https://drive.google',
    ):
        resolve_weights(NAME)
    assert not (cache / FILE).exists()
    assert resolve_weights(NAME).read_bytes() == CONTENT
    assert server.asked[-1] == (ENTRY.google, f'bytes={HALF}-')
    assert files(cache) == [FILE, f'{FILE}.json']


def test_a_cut_connection_is_resumed_by_itself(server, cache, known, monkeypatch):
    monkeypatch.setattr(download, 'RETRIES', 1)
    monkeypatch.setattr('random.uniform', lambda *_: 0)
    server.files[ENTRY.google] = CONTENT
    server.cut = [HALF + 10]
    assert resolve_weights(NAME).read_bytes() == CONTENT
    assert server.asked[-1] == (ENTRY.google, f'bytes={HALF}-')


def test_a_server_that_cannot_resume_sends_all_again(server, cache, known):
    server.files[ENTRY.google] = CONTENT
    server.cut = [HALF + 10]
    server.resumes = False
    with pytest.raises(FileNotFoundError, match='incomplete'):
        resolve_weights(NAME)
    assert resolve_weights(NAME).read_bytes() == CONTENT
    assert files(cache) == [FILE, f'{FILE}.json']


def test_a_quota_page_keeps_what_was_downloaded(server, cache, known):
    server.files[ENTRY.google] = CONTENT
    server.cut = [HALF + 10]
    with pytest.raises(FileNotFoundError, match='incomplete'):
        resolve_weights(NAME)
    server.page = QUOTA
    with pytest.raises(FileNotFoundError, match='Too many users'):
        resolve_weights(NAME)
    server.page = None
    resolve_weights(NAME)
    assert server.asked[-1] == (ENTRY.google, f'bytes={HALF}-')


@pytest.mark.parametrize(
    ('changes', 'problem'),
    [
        ({'sha256': 64 * '0'}, rf'its SHA-256 is {HASH} in place of 0{{64}} \(a third party\'s record\)'),
        ({'bytes': 5}, r'it has 1,048,576 bytes in place of 5'),
    ],
)
def test_another_file_than_the_name_stands_for(server, cache, known, monkeypatch, changes, problem):
    monkeypatch.setitem(zoo.WEIGHTS, NAME, replace(zoo.WEIGHTS[NAME], **changes))
    server.files[ENTRY.google] = CONTENT
    with pytest.raises(ValueError, match=rf'what was downloaded is not {NAME}, and was removed: {problem}.*; get '):
        resolve_weights(NAME)
    assert files(cache) == []


def test_an_archive_that_is_cut_off(server, cache, unknown):
    server.files[ENTRY.google] = b'PK\x03\x04' + CONTENT
    with pytest.raises(ValueError, match='it is cut off'):
        resolve_weights(NAME)
    assert files(cache) == []


@pytest.mark.parametrize(('page', 'reason'), [(QUOTA, 'Google Drive: Too many users'), (LOGIN, 'it sent a page')])
def test_a_page_in_place_of_the_file(server, cache, page, reason):
    server.page = page
    with pytest.raises(FileNotFoundError, match=reason) as error:
        resolve_weights(NAME)
    message = str(error.value)
    for needed in (ENTRY.google, ENTRY.baidu, 'password itpn', FILE, str(cache / FILE)):
        assert needed in message
    assert '\n' not in message
    assert files(cache) == []


def test_a_page_from_another_server(server, cache):
    server.files['/a/b/resolve/main/f.pth'] = LOGIN.encode()
    with pytest.raises(FileNotFoundError, match=r'127.0.0.1 sent a web page in place of the file'):
        resolve_weights('hf://a/b/f.pth')
    assert files(cache / 'hf/a/b') == []


def test_a_full_disk(server, cache, known, monkeypatch):
    server.files[ENTRY.google] = CONTENT

    class FullDisk(io.FileIO):
        def write(self, content: bytes) -> int:
            if self.mode != 'rb' and self.tell() >= 500_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module('gdown.download'), 'open', FullDisk, raising=False)
        with pytest.raises(OSError, match=rf'no space for {NAME} in {cache}: make room, or set MMITPN_HOME') as error:
            resolve_weights(NAME)
    assert error.value.errno == errno.ENOSPC
    assert not (cache / FILE).exists()
    assert resolve_weights(NAME).read_bytes() == CONTENT
    assert server.asked[-1][1].startswith('bytes=')  # what there was space for is used


def test_a_cache_that_is_not_writable(server, cache, monkeypatch):
    cache.parent.write_text('a file, not a folder')
    with pytest.raises(OSError, match=rf'{NAME} cannot be written into {cache}.*set MMITPN_HOME'):
        resolve_weights(NAME)


def test_several_processes_download_once(server, cache):
    server.files['/a/b/resolve/v1/in/f.pth'] = CONTENT
    code = "from mmitpn.weights import resolve_weights as r; print(r('hf://a/b@v1/in/f.pth'))"
    root = str(Path(download.__file__).parents[2])
    runs = [
        subprocess.Popen(
            [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': root}
        )
        for _ in range(2)
    ]
    assert {run.communicate()[0].strip() for run in runs} == {str(cache / 'hf/a/b@v1/in/f.pth')}
    assert len(server.asked) == 1


def test_a_missing_file_on_hugging_face(server):
    with pytest.raises(
        FileNotFoundError, match=r'hf://a/b/f.pth cannot be downloaded \(HTTP Error 404\): check the name'
    ):
        resolve_weights('hf://a/b/f.pth')


def test_the_progress_bar_is_for_terminals(server, monkeypatch, known):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    server.files[ENTRY.google] = CONTENT
    for stream, pattern in ((io.StringIO(), r''), (Terminal(), r'(?s).*fast-itpn-b.*1\.0/1\.0 MB.*')):
        monkeypatch.setattr(sys, 'stderr', stream)
        resolve_weights(NAME).unlink()
        assert re.fullmatch(pattern, stream.getvalue())


# --- files that are here ---------------------------------------------------------------------------------------------


def test_a_file_put_there_by_hand(offline, cache, known):
    with pytest.raises(FileNotFoundError, match=rf'no connection to drive\.google\.com.*put it at {cache / FILE}$'):
        resolve_weights(NAME)
    (cache / FILE).write_bytes(CONTENT)
    assert resolve_weights(NAME) == cache / FILE
    (cache / FILE).write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r'it has 1,048,575 bytes.*remove it, or give its path in place of the name'):
        resolve_weights(NAME)
    (cache / FILE).write_text(LOGIN)
    with pytest.raises(ValueError, match='it is a web page'):
        resolve_weights(NAME)
    assert (cache / FILE).exists()  # the user's own file is left


def test_an_unknown_hash_is_recorded_and_compared(offline, cache, unknown):
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(CONTENT)
    resolve_weights(NAME)
    assert download.read_record(cache / FILE)['sha256'] == HASH
    os.utime(cache / FILE, (1, 1))  # the same file, copied
    resolve_weights(NAME)
    (cache / FILE).write_bytes(CONTENT[::-1])
    with pytest.raises(ValueError, match=rf'in place of {HASH} \(recorded at its first use in .*{FILE}\.json\)'):
        resolve_weights(NAME)


def test_the_hash_is_computed_again_on_request(offline, cache, unknown):
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(CONTENT)
    resolve_weights(NAME)
    stat = (cache / FILE).stat()
    (cache / FILE).write_bytes(CONTENT[::-1])
    os.utime(cache / FILE, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as where a disk loses bits
    resolve_weights(NAME)
    with pytest.raises(ValueError, match='its SHA-256 is'):
        resolve_weights(NAME, recheck=True)


def test_a_cache_that_is_read_only(offline, cache, unknown, monkeypatch):
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(CONTENT)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, 'read-only')

    monkeypatch.setattr(download, 'write_atomic', refuse)
    assert resolve_weights(NAME) == cache / FILE


def test_files_that_only_a_browser_gets(cache):
    with pytest.raises(FileNotFoundError, match=r'is not here: only a browser gets it: get the file from https://pan'):
        resolve_weights('itpn-l-clip-in21k')


def test_a_file_that_comes_with_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(download, 'config_folder', lambda: tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r'nano-shapes is not here: it comes with mmitpn as .*install mmitpn again'
    ):
        resolve_weights('nano-shapes')
    (tmp_path / 'quickstart').mkdir()
    (tmp_path / 'quickstart' / 'nano-shapes.pth').touch()
    assert resolve_weights('nano-shapes') == tmp_path / 'quickstart' / 'nano-shapes.pth'
    assert files(tmp_path / 'quickstart') == ['nano-shapes.pth']
