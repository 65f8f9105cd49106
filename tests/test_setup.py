"""Packing: what setup.py puts where mim looks for it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mmitpn

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def packing() -> ModuleType:
    spec = importlib.util.spec_from_file_location('mmitpn_setup', ROOT / 'setup.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / 'repository'
    (root / 'configs' / 'dino' / '__pycache__').mkdir(parents=True)
    (root / 'configs' / 'dino' / 'a.py').write_text('x = 1\n')
    (root / 'configs' / 'dino' / '__pycache__' / 'a.pyc').write_text('')
    (root / 'tools').mkdir()
    (root / 'tools' / 'train.py').write_text('print(1)\n')
    (root / 'model-index.yml').write_text('Import: []\n')
    return root


def test_an_editable_installation_follows_the_repository(packing: ModuleType, repository: Path) -> None:
    target = repository / 'mmitpn' / '.mim'
    for _ in range(2):  # a second installation finds the first one's links
        packing.pack_for_mim(repository, target, link=True)
    assert {path.name for path in target.iterdir()} == {'configs', 'tools', 'model-index.yml'}
    assert (target / 'configs').is_symlink()
    (repository / 'configs' / 'dino' / 'b.py').write_text('y = 2\n')
    assert (target / 'configs' / 'dino' / 'b.py').read_text() == 'y = 2\n'


def test_a_wheel_carries_copies(packing: ModuleType, repository: Path, tmp_path: Path) -> None:
    target = tmp_path / 'build' / 'mmitpn' / '.mim'
    packing.pack_for_mim(repository, target, link=False)
    (repository / 'configs' / 'dino' / 'a.py').unlink()
    packing.pack_for_mim(repository, target, link=False)
    assert not (target / 'configs').is_symlink()
    assert not (target / 'configs' / 'dino' / 'a.py').exists()
    assert not list(target.rglob('__pycache__'))
    assert (target / 'tools' / 'train.py').read_text() == 'print(1)\n'


def test_replacing_links_by_copies_leaves_the_repository_alone(packing: ModuleType, repository: Path) -> None:
    target = repository / 'mmitpn' / '.mim'
    packing.pack_for_mim(repository, target, link=True)
    packing.pack_for_mim(repository, target, link=False)
    assert not (target / 'configs').is_symlink()
    assert (repository / 'configs' / 'dino' / 'a.py').read_text() == 'x = 1\n'


def test_copies_where_links_are_refused(packing: ModuleType, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError('no links here')

    monkeypatch.setattr(Path, 'symlink_to', refuse)
    target = repository / 'mmitpn' / '.mim'
    made = packing.pack_for_mim(repository, target, link=True)
    assert len(made) == 3
    assert not (target / 'configs').is_symlink()
    assert (target / 'configs' / 'dino' / 'a.py').read_text() == 'x = 1\n'


def test_what_is_absent_is_left_out(packing: ModuleType, repository: Path) -> None:
    (repository / 'model-index.yml').unlink()
    made = packing.pack_for_mim(repository, repository / 'mmitpn' / '.mim', link=True)
    assert [path.name for path in made] == ['configs', 'tools']


def test_the_version_is_the_package_s(packing: ModuleType) -> None:
    assert packing.read_version() == mmitpn.__version__


def test_only_setuptools_is_imported() -> None:
    code = (ROOT / 'setup.py').read_text()
    imported = set(re.findall(r'^(?:from|import) (\w+)', code, flags=re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {'setuptools'}


def test_the_index_names_files_that_are_there() -> None:
    named = re.findall(r'^\s*- (\S+)$', (ROOT / 'model-index.yml').read_text(), flags=re.MULTILINE)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.slow
def test_a_built_wheel_has_configs_and_types(tmp_path: Path) -> None:
    code = 'import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]))'
    clone = tmp_path / 'clone'
    clone.mkdir()
    for name in (
        'setup.py',
        'pyproject.toml',
        'LICENSE',
        'MANIFEST.in',
        'model-index.yml',
        'mmitpn',
        'configs',
        'requirements',
        'tools',
    ):
        source = ROOT / name
        copy = ['cp', '-R', '--', str(source), str(clone / name)]
        subprocess.run(copy, check=True)
    subprocess.run(['rm', '-rf', str(clone / 'mmitpn' / '.mim')], check=True)
    done = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    from zipfile import ZipFile

    (wheel,) = tmp_path.glob('*.whl')
    names = ZipFile(wheel).namelist()
    assert 'mmitpn/py.typed' in names
    assert 'mmitpn/.mim/model-index.yml' in names
    assert any(name.startswith('mmitpn/.mim/configs/') and name.endswith('.py') for name in names)
    assert 'mmitpn/.mim/tools/train.py' in names
    assert 'mmitpn/.mim/requirements/onedl.txt' in names  # the pins that the doctor names
    assert not any(name.startswith(('tests/', 'tools/', 'configs/')) for name in names)
