"""The index of a folder of shards: nothing but an index is read."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from mmitpn.checkpoint.sharded import read_index, read_sharded


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
    with pytest.raises(ValueError, match=r'is not read, since an index holds no builtins\.print'):
        read(Call(print, 'run'))
    (tmp_path / '.metadata').unlink()
    with pytest.raises(FileNotFoundError, match=r'it is no checkpoint of shards'):
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
    with pytest.raises(ValueError, match=r'is not read, since an index holds no builtins\.getattr'):
        read(Call(getattr, owner, name))


def test_paths_as_any_release_of_python_writes_them(read):
    """``pathlib.PosixPath`` is ``pathlib._local.PosixPath`` in a pickle of Python 3.13, and only there."""
    old, new = b'cpathlib\n', b'cpathlib._local\n'
    assert read(Path('a')) == read(Path('a'), {old: new}) == read(Path('a'), {new: old}) == Path('a')
