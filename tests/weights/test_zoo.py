"""The table of names, in the package, on the command line and in the documents."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mmitpn.commands.weights import main
from mmitpn.engine.config_utils import resolve_config
from mmitpn.models.backbones.fast_itpn import ARCHS
from mmitpn.weights import WEIGHTS, find_weights, zoo

DOCS = Path(__file__).parents[2] / 'docs' / 'weights.md'
NAME = 'fast-itpn-b'
FILE = find_weights(NAME).file


@pytest.mark.parametrize('name', WEIGHTS)
def test_an_entry_is_complete(name):
    entry = WEIGHTS[name]
    assert entry.name == name
    assert entry.arch in ARCHS
    if entry.shipped:
        assert resolve_config(entry.config).is_file()
        return
    assert re.fullmatch(r'[\w-]{33}', entry.google or 33 * 'x')
    assert re.fullmatch(r'[\w-]{23}', entry.baidu)
    assert entry.baidu_password in ('itpn', 'abcd')
    assert re.fullmatch(r'[0-9a-f]{64}', entry.sha256 or 64 * '0')
    assert (entry.recorded_by is None) == (entry.sha256 is None and entry.bytes is None)


def test_files_do_not_collide():
    assert len({entry.local_file for entry in WEIGHTS.values()}) == len(WEIGHTS)


@pytest.mark.parametrize('name', WEIGHTS)
def test_the_document_has_what_the_table_has(name):
    entry = WEIGHTS[name]
    (row,) = [line for line in DOCS.read_text().splitlines() if line.startswith(f'| `{name}` ')]
    for fact in (entry.file, entry.google, entry.baidu, entry.sha256, entry.top1, entry.native_size, entry.params):
        assert fact is None or f'{fact}' in row
    if entry.bytes is not None:
        assert f'{entry.bytes:,}' in row


# --- the command line ------------------------------------------------------------------------------------------------


def test_list(capsys):
    assert main(['list']) == 0
    out = capsys.readouterr().out
    assert re.search(r'fast-itpn-b .*FastITPN base.*85 M.*224.*87\.4.*180\.8 MB.*no', out)
    assert 'itpn-l-pixel' not in out
    assert 'no LICENSE file' in out
    assert main(['list', '--all']) == 0
    assert re.search(
        r'itpn-l-pixel .*ITPN large.*288 M.*pixels.*unknown.*unknown.*unknown.*no', capsys.readouterr().out
    )


def test_list_as_json(capsys, cache):
    cache.mkdir(parents=True)
    (cache / FILE).touch()
    assert main(['list', '--all', '--json']) == 0
    facts = {entry['name']: entry for entry in json.loads(capsys.readouterr().out)}
    assert facts.keys() == WEIGHTS.keys()
    assert facts[NAME]['is_here']
    assert facts[NAME]['path'] == str(cache / FILE)
    assert not facts['fast-itpn-t']['is_here']


@pytest.fixture
def served(server, monkeypatch):
    entry = replace(find_weights(NAME), sha256=None, bytes=None, recorded_by=None)
    monkeypatch.setitem(zoo.WEIGHTS, NAME, entry)
    server.files[entry.google] = b'weights'


@pytest.mark.parametrize('name', [NAME, f'mmitpn://{NAME}', FILE])
def test_get_and_path(served, capsys, cache, name):
    assert main(['path', name]) == 0
    assert capsys.readouterr().out == f'{cache / FILE}\n'
    assert main(['get', name]) == 0
    out = capsys.readouterr().out
    assert f'{name}: {cache / FILE}\n' in out
    assert re.search(r'SHA-256 [0-9a-f]{64} \(recorded at its first use', out)
    assert 'headers of its sources say MIT' in out


@pytest.mark.parametrize('command', ['get', 'path'])
def test_what_cannot_be_had(offline, capsys, command):
    assert main([command, NAME]) == 1
    written = capsys.readouterr()
    assert written.out == ''
    assert written.err.startswith('error: fast-itpn-b cannot be downloaded (no connection to drive.google.com): get ')
    assert main([command, 'fast-itpn-bb']) == 2
    assert 'the nearest are fast-itpn-b,' in capsys.readouterr().err


def test_get_computes_the_hash_again(served, offline, capsys, cache):
    cache.mkdir(parents=True)
    (cache / FILE).write_bytes(b'weights')
    (cache / f'{FILE}.json').write_text(json.dumps({'sha256': 64 * '0', 'bytes': 7, 'mtime_ns': 0}))
    assert main(['get', NAME]) == 1
    assert 'its SHA-256 is' in capsys.readouterr().err
