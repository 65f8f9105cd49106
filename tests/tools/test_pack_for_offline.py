"""tools/misc/pack_for_offline.sh: what a Python lacks, and a bundle that is packed and installed without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution, distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools' / 'misc' / 'pack_for_offline.sh'
HERE = f'{sys.version_info.major}.{sys.version_info.minor}'


def pack(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHON': sys.executable, **variables}
    command = ['bash', str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def freeze(tmp_path):
    """Writes what is installed on the other machine."""

    def write(*lines: str) -> Path:
        file = tmp_path / 'freeze.txt'
        file.write_text('\n'.join(lines) + '\n')
        return file

    return write


def test_shellcheck():
    if shutil.which('shellcheck') is None:
        pytest.skip('needs shellcheck (apt-get install shellcheck)')
    done = subprocess.run(['shellcheck', str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ('-o x', '--python is missing'),
        ('--python 3.12', '-o is missing'),
        ('--python 3.9 --list', 'Python is 3.9, and the onedl stack runs on 3.10 to 3.13'),
        ('--python 3.13 --stack openmmlab --list', '3.10 to 3.12'),
        ('--python nothing --list', "--python is 'nothing', which is neither a version"),
        ('--python 3.12 --list --stack mm', "--stack is 'mm'; allowed: onedl, openmmlab"),
        ('--python 3.12 --list --cuda 11', "--cuda is '11'; allowed: 12, 13"),
        ('--python 3.12 --list --installed nowhere.txt', "--installed: no file 'nowhere.txt'"),
        ('--python 3.12 -o /', "'/' is there already"),
        ('--python 3.12 --lacking x', "unknown option '--lacking'; allowed: --python"),
        ('--python', '--python needs a value'),
    ],
)
def test_mistakes_are_one_line(arguments, words):
    done = pack(*arguments.split())
    assert done.returncode == 2
    assert done.stderr.startswith('[pack] error: ')
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_lacking(freeze):
    everything = pack('--python', '3.12', '--list').stdout.split()
    assert {'numpy==2.2.6', 'onedl-mmdetection==3.5.1', 'onedl-mmcv==2.3.6', 'psutil==7.2.2'} <= set(everything)
    assert any(line.startswith('torch==') for line in everything)
    assert not [
        line for line in everything if line.startswith(('wheel==', 'ninja=='))
    ]  # they build, and nothing runs them
    there = freeze(
        'torch==2.11.0', 'torchvision==0.26.0', 'NumPy==2.3.0', 'opencv-python==4.12.0.88', 'onedl_mmcv @ file:///x.whl'
    )
    done = pack('--python', '3.12', '--installed', there, '--list')
    lacking = [line.partition('==')[0] for line in done.stdout.split()]
    assert not {'torch', 'torchvision', 'setuptools', 'numpy', 'opencv-python-headless', 'onedl-mmcv'} & set(lacking)
    assert {'scipy', 'onedl-mmdetection'} <= set(lacking)
    assert 'numpy 2.3.0 stays (the tested version is numpy 2.2.6)' in done.stderr
    assert 'torch==2.10.0' in pack('--python', '3.12', '--cuda', '12', '--list').stdout


@pytest.mark.parametrize(
    ('lines', 'words'),
    [
        (['mmdet==3.3.0'], 'mmdet is there, of the other stack: pack with --stack openmmlab'),
        (['torch==2.11.0'], 'torch 2.11.0 is there without torchvision'),
        (['nothing to see'], 'has no line such as numpy==2.2.6'),
    ],
)
def test_machines_that_cannot_be_packed_for(freeze, lines, words):
    done = pack('--python', '3.12', '--installed', freeze(*lines), '--list')
    assert done.returncode == 2
    assert words in done.stderr


def test_an_interpreter_is_asked_for_what_it_has(tmp_path):
    fake = tmp_path / 'python'
    fake.write_text(f'#!/bin/sh\ncase "$*" in *freeze*) echo "six==1.0" ;; *) echo {HERE} ;; esac\n')
    fake.chmod(0o755)
    done = pack('--python', fake, '--list')
    assert done.returncode == 0, done.stderr
    assert 'six 1.0 stays' in done.stderr
    assert not [line for line in done.stdout.split() if line.startswith('six==')]


def wheel_of(name: str, folder: Path) -> None:
    """Pack an installed distribution of Python files as a wheel."""
    found = distribution(name)
    with ZipFile(folder / f'{name}-{found.version}-py3-none-any.whl', 'w') as wheel:
        for file in found.files:
            if file.suffix != '.pyc':
                wheel.write(found.locate_file(file), str(file))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['folder', 'bundle.tar.gz'])
def test_a_bundle_is_installed_without_a_network(tmp_path, freeze, kind):
    pytest.importorskip('mmdet')
    for name in ('setuptools', 'wheel', 'termcolor'):
        try:
            distribution(name)
        except ModuleNotFoundError:
            pytest.skip(f'needs {name} to pack it')
    (tmp_path / 'index').mkdir()
    wheel_of('termcolor', tmp_path / 'index')
    names = {one.metadata['Name']: one.version for one in distributions()}
    there = freeze(*(f'{name}=={version}' for name, version in names.items() if name not in ('termcolor', 'mmitpn')))
    offline = {'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': str(tmp_path / 'index')}
    stack = 'openmmlab' if 'mmdet' in names else 'onedl'
    out = tmp_path / 'new' / kind
    done = pack('--python', HERE, '--installed', there, '--stack', stack, '-o', out, **offline)
    assert done.returncode == 0, done.stderr
    if out.is_file():
        subprocess.run(['tar', '-xzf', out], cwd=tmp_path, check=True)
        out = tmp_path / 'mmitpn-offline'
    assert sorted(file.name.partition('-')[0] for file in (out / 'wheels').iterdir()) == ['mmitpn', 'termcolor']
    if kind != 'folder':
        return

    # Another environment, which sees the packages of this one.
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True)
    (site,) = (tmp_path / 'env').glob('lib/python*/site-packages')
    (site / 'there.pth').write_text(sysconfig.get_path('purelib') + '\n')
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    installed = subprocess.run(
        ['bash', str(out / 'install.sh'), 'env/bin/python'],
        cwd=tmp_path, env=env | offline, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert (site / 'mmitpn' / '.mim' / 'configs').is_dir()
    assert 'everything that mmitpn needs works' in installed.stdout
