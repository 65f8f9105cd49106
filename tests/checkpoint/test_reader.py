"""Reading files and indices of shards: what is read, what is refused, and that nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import functools
import io
import os
import pickle
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from mmitpn.checkpoint import read_checkpoint
from mmitpn.checkpoint.reader import read_array_pickle
from mmitpn.checkpoint.sharded import read_index, read_sharded

WEIGHTS = {'a.weight': torch.arange(6.0).view(2, 3), 'b.bias': torch.ones(2, dtype=torch.float16)}
ARRAYS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.array([True, False]), 'c': np.array(7)}


class Unknown:
    """A type that only this test knows."""

    def __init__(self):
        self.value = {'nested': [1, 2]}


class Runs:
    """Its pickle is a call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def _same(content, expected=WEIGHTS):
    return content.keys() >= expected.keys() and all(torch.equal(content[k], v) for k, v in expected.items())


def _saved(path, content, **kwargs):
    torch.save(content, path, **kwargs)
    return path


@pytest.mark.parametrize('name', ['weights.pth', 'weights.pt', 'weights.bin', 'weights', 'weights.safetensors'])
@pytest.mark.parametrize('how', ['zip', 'legacy', 'safetensors'])
def test_the_format_is_recognized_by_contents_not_by_name(tmp_path, name, how):
    path = tmp_path / name
    if how == 'safetensors':
        safetensors.torch.save_file(WEIGHTS, path)
    else:
        _saved(path, WEIGHTS, _use_new_zipfile_serialization=how == 'zip')
    assert _same(read_checkpoint(path))
    assert _same(read_checkpoint(str(path)))


@pytest.mark.parametrize('legacy', [False, True])
def test_objects_that_training_checkpoints_contain_are_no_hindrance(tmp_path, legacy):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        'args': argparse.Namespace(lr=np.float64(0.1), out=Path('x')),
        'meta': {'cfg': ConfigDict(a=1), 'score': np.float32(0.5), 'palette': np.arange(3), 'epoch': 3},
        'message_hub': {'log_scalars': {'loss': history}},
        'model': WEIGHTS,
    }
    read = read_checkpoint(_saved(tmp_path / 'f.pth', content, _use_new_zipfile_serialization=not legacy))
    assert _same(read['model'])
    assert read['meta']['epoch'] == 3


def test_reading_leaves_what_others_registered_with_torch_alone(tmp_path):
    with torch.serialization.safe_globals([Unknown]):
        before = set(torch.serialization.get_safe_globals())
        read_checkpoint(_saved(tmp_path / 'f.pth', {'meta': HistoryBuffer([1.0], [1]), **WEIGHTS}))
        with pytest.raises(ValueError, match='not read by default'):
            read_checkpoint(_saved(tmp_path / 'f.pth', {'extra': functools.partial(max, 1), **WEIGHTS}))
        assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize('legacy', [False, True])
def test_unknown_objects_need_to_be_allowed(tmp_path, monkeypatch, legacy):
    content = {'extra': Unknown(), 'partial': functools.partial(max, 1), **WEIGHTS}
    path = _saved(tmp_path / 'f.pth', content, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r'Unknown beside.*allow_objects=True.*MMITPN_ALLOW_OBJECTS=1') as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    read = read_checkpoint(path, allow_objects=True)
    assert _same(read)
    assert not isinstance(read['extra'], Unknown)
    monkeypatch.setenv('MMITPN_ALLOW_OBJECTS', '1')
    assert _same(read_checkpoint(path))
    with pytest.raises(ValueError, match='not read by default'):
        read_checkpoint(path, allow_objects=False)
    monkeypatch.setenv('MMITPN_ALLOW_OBJECTS', 'perhaps')
    with pytest.raises(ValueError, match="MMITPN_ALLOW_OBJECTS is 'perhaps'"):
        read_checkpoint(path)


def test_paths_in_files_of_another_python_are_placeholders(tmp_path):
    """``pathlib.PosixPath`` is ``pathlib._local.PosixPath`` in a pickle of Python 3.13, and only there."""
    path = _saved(tmp_path / 'f.pth', {'work_dir': Path('a'), **WEIGHTS}, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    old, new = b'cpathlib\nPosixPath', b'cpathlib._local\nPosixPath'
    assert (old in content) != (new in content)
    for one, other in ((old, new), (new, old)):
        path.write_bytes(content.replace(one, other))
        assert _same(read_checkpoint(path))


@pytest.mark.parametrize('allow', [None, True])
@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('kind', ['os', 'builtins', 'subprocess', 'pathlib'])
def test_nothing_in_a_file_is_executed(tmp_path, allow, legacy, kind):
    marker = tmp_path / 'marker'
    calls = {
        'os': lambda: Runs(os.system, f'touch {marker}'),
        'builtins': lambda: Runs(eval, f'open({str(marker)!r}, "w")'),
        'subprocess': lambda: Runs(__import__('subprocess').call, ['touch', str(marker)]),
        'pathlib': lambda: Runs(Path.touch, marker),
    }
    path = _saved(tmp_path / 'f.pth', {'x': calls[kind](), **WEIGHTS}, _use_new_zipfile_serialization=not legacy)
    assert not marker.exists()
    if allow and kind != 'os':
        assert _same(read_checkpoint(path, allow_objects=True))
    elif kind == 'pathlib':  # its parts are types that training checkpoints contain: placeholders without allow_objects
        assert _same(read_checkpoint(path))
    else:
        with pytest.raises(ValueError, match='which no checkpoint needs' if kind == 'os' else 'not read by default'):
            read_checkpoint(path, allow_objects=allow)
    assert not marker.exists()
    pickle.loads(pickle.dumps(calls[kind]()))  # noqa: S301 - shows that the call itself works
    assert marker.exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html>log in</html>', 'web page'),
        (b'\n  <html lang="en">', 'web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
        (b'{"weights": 1}', 'not a checkpoint: it starts with'),
        (b'just some text', 'not a checkpoint: it starts with'),
        (np.random.default_rng(0).bytes(4096), 'not a checkpoint|cannot be read'),
        (pickle.dumps({'a': 1}, protocol=2), 'cannot be read as a checkpoint'),
        (pickle.dumps([1, 2], protocol=4), 'cannot be read as a checkpoint'),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message):
    path = tmp_path / 'f.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)
    assert 'weights_only' not in str(error.value)


@pytest.mark.parametrize('how', ['zip', 'legacy', 'safetensors'])
@pytest.mark.parametrize('fraction', [0.05, 0.5, 0.95, 0.999])
def test_files_that_are_cut_off(tmp_path, how, fraction):
    path = tmp_path / 'f.pth'
    weights = {f'layer{i}.weight': torch.randn(64, 64) for i in range(4)}
    if how == 'safetensors':
        safetensors.torch.save_file(weights, path)
    else:
        _saved(path, weights, _use_new_zipfile_serialization=how == 'zip')
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match='cut off, damaged or of another kind'):
        read_checkpoint(path)


def test_other_archives_programs_and_objects(tmp_path):
    with zipfile.ZipFile(tmp_path / 'f.zip', 'w') as archive:
        archive.writestr('weights.pth', 'x')
    with pytest.raises(ValueError, match=r'archive \(of weights.pth'):
        read_checkpoint(tmp_path / 'f.zip')
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / 'f.pt')
    with pytest.raises(ValueError, match='TorchScript'):
        read_checkpoint(tmp_path / 'f.pt')
    with pytest.raises(ValueError, match=r'holds a Tensor, not weights by name'):
        read_checkpoint(_saved(tmp_path / 't.pth', torch.ones(1)))
    with pytest.raises(ValueError, match='allow_objects'):
        read_checkpoint(_saved(tmp_path / 'm.pth', torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match=r'pickled object, not weights by name: save model.state_dict'):
        read_checkpoint(_saved(tmp_path / 'm.pth', torch.nn.Linear(1, 1)), allow_objects=True)


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'missing.pth does not exist'):
        read_checkpoint(tmp_path / 'missing.pth')
    (tmp_path / 'inner.pth').touch()
    with pytest.raises(ValueError, match=r'is a folder \(holding inner.pth\)'):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match='file://, http:// or https://'):
        read_checkpoint('s3://bucket/file.pth')


def test_a_file_address(tmp_path):
    path = _saved(tmp_path / 'with space.pth', WEIGHTS)
    assert _same(read_checkpoint(path.as_uri()))
    with pytest.raises(FileNotFoundError):
        read_checkpoint((tmp_path / 'missing.pth').as_uri())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The folder and address of a file server, and the paths that were asked of it."""
    folder, asked = tmp_path / 'served', []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            asked.append(self.path)

    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield folder, f'http://127.0.0.1:{http.server_port}', asked
        http.shutdown()
        thread.join()


def test_an_address_is_downloaded_once(server):
    folder, address, asked = server
    for name in ('one', 'two'):
        (folder / name).mkdir()
        _saved(folder / name / 'model.pth', {**WEIGHTS, 'a.weight': torch.full((1,), float(len(name)))})
    _saved(folder / 'two' / 'model.pth', WEIGHTS)
    for _ in range(2):
        assert not _same(read_checkpoint(f'{address}/one/model.pth'))
        assert _same(read_checkpoint(f'{address}/two/model.pth'))  # another file of that name
    assert asked == ['/one/model.pth', '/two/model.pth']


def test_a_broken_download_is_not_kept(server):
    folder, address, _ = server
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    (folder / 'f.pth').write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(ValueError, match='the broken download was removed'):
        read_checkpoint(f'{address}/f.pth')
    (folder / 'f.pth').write_bytes(buffer.getvalue())
    assert _same(read_checkpoint(f'{address}/f.pth'))


def test_an_address_that_leads_nowhere(server):
    with pytest.raises(FileNotFoundError, match=r'cannot be downloaded \(HTTP Error 404'):
        read_checkpoint(f'{server[1]}/missing.pth')
    with pytest.raises(FileNotFoundError, match='check the address and the network'):
        read_checkpoint('http://127.0.0.1:9/missing.pth')


# --- detectron2's pickles of arrays ---------------------------------------------------------------------------------
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_arrays_become_tensors(tmp_path, protocol):
    path = tmp_path / 'model.pkl'
    path.write_bytes(pickle.dumps({'model': ARRAYS, '__author__': 'x', 'n': np.float64(2.5)}, protocol=protocol))
    found = read_checkpoint(path)
    assert found['__author__'] == 'x'
    assert found['n'] == 2.5
    for name, array in ARRAYS.items():
        assert torch.equal(found['model'][name], torch.as_tensor(array))
        found['model'][name].zero_()  # not read-only


@pytest.mark.parametrize('protocol', [2, 5])
def test_nothing_in_a_pickle_of_arrays_is_executed(tmp_path, protocol, monkeypatch):
    called = []
    monkeypatch.setattr(os, 'system', called.append)
    path = tmp_path / 'model.pkl'
    path.write_bytes(
        pickle.dumps({'model': ARRAYS, 'x': Runs(os.system, 'touch /nonexistent/file')}, protocol=protocol)
    )
    with pytest.raises(ValueError, match=r'model\.pkl'):
        read_checkpoint(path)
    assert not called


def test_files_of_torch_are_not_read_as_pickles_of_arrays(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save({'w': torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert read_array_pickle(path) is None
    assert torch.equal(read_checkpoint(path)['w'], torch.ones(2))
    path.write_bytes(pickle.dumps([1, 2]))
    assert read_array_pickle(path) is None


class Call:
    """Is pickled as a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def read(tmp_path) -> Callable:
    def call(content: object, replaced: Mapping[bytes, bytes] = MappingProxyType({})) -> object:
        index = pickle.dumps(Metadata({}, planner_data=content), protocol=3)
        for one, other in replaced.items():
            index = index.replace(one, other)
        (tmp_path / '.metadata').write_bytes(index)
        return read_index(tmp_path).planner_data

    return call


def test_an_index_with_code_in_it_is_refused(read, tmp_path):
    with pytest.raises(ValueError, match=r'is not read: it refers to builtins\.print, which no index needs'):
        read(Call(print, 'run'))
    (tmp_path / '.metadata').unlink()
    with pytest.raises(FileNotFoundError, match=r'it is not a sharded checkpoint'):
        read_sharded(tmp_path)


@pytest.mark.parametrize('member', _MEM_FORMAT_ENCODING)
def test_an_enumeration_as_some_releases_of_python_write_it(read, member):
    """Python 3.11.0 to 3.11.3 write ``getattr`` of the class; the others call the class with the value."""
    assert read(Call(getattr, _MEM_FORMAT_ENCODING, member.name)) is member
    assert read(Call(_MEM_FORMAT_ENCODING, member.value)) is member


@pytest.mark.parametrize(
    ('owner', 'name'), [(_MEM_FORMAT_ENCODING, 'mro'), (Metadata, '__init__'), (OrderedDict, 'pop')]
)
def test_no_other_attribute_is_read(read, owner, name):
    with pytest.raises(ValueError, match=r'is not read: it refers to builtins\.getattr, which no index needs'):
        read(Call(getattr, owner, name))


def test_paths_as_any_release_of_python_writes_them(read):
    """``pathlib.PosixPath`` is ``pathlib._local.PosixPath`` in a pickle of Python 3.13, and only there."""
    old, new = b'cpathlib\n', b'cpathlib._local\n'
    assert read(Path('a')) == read(Path('a'), {old: new}) == read(Path('a'), {new: old}) == Path('a')
