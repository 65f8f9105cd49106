"""Starts the launchers on a toy (tests/tools/launch_toy), and sees to it that none of their processes stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / 'launch_toy'


def processes_with(variable: str, value: str) -> list[int]:
    """Numbers of the running processes that have a variable of this value in their environment."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            if f'{variable}={value}'.encode() in (folder / 'environ').read_bytes().split(b'\0'):
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _end_processes(variable: str, value: str, *, patience: float = 10) -> list[str]:
    """Give such processes some seconds to end by themselves, then kill them; returns the killed ones' command lines."""
    limit = time.monotonic() + patience
    while processes_with(variable, value) and time.monotonic() < limit:
        time.sleep(0.1)
    killed = []
    for number in processes_with(variable, value):
        try:
            killed.append(Path(f'/proc/{number}/cmdline').read_text().replace('\0', ' '))
            os.kill(number, signal.SIGKILL)
        except OSError:
            continue
    return killed


@pytest.fixture(scope='session')
def end_processes() -> Callable[..., list[str]]:
    """The function above."""
    return _end_processes


@pytest.fixture(scope='module')
def launch_toy(tmp_path_factory, end_processes) -> Iterator[SimpleNamespace]:
    """``start(*command, **variables)`` starts a command in ``folder``; ``finish(process)`` is its status and output.

    ``run`` does both; ``script(name)`` is the path of a tool, ``config`` that of the toy's config, ``root`` the
    repository.
    """
    folder = tmp_path_factory.mktemp('launch')
    mark = ('MMITPN_TEST_LAUNCH', str(folder))
    settings = (
        'NNODES',
        'NODE_RANK',
        'MASTER_ADDR',
        'MASTER_PORT',
        'PORT',
        'MAX_RESTARTS',
        'LOG_DIR',
        'PYTHON',
        'GPUS',
    )
    clean = {name: value for name, value in os.environ.items() if name not in settings and 'SLURM' not in name}

    def start(*command: object, cwd: Path = folder, **variables: str) -> subprocess.Popen:
        env = {**clean, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', mark[0]: mark[1]}
        env['PYTHONPATH'] = os.pathsep.join([str(TOY), str(ROOT), os.environ.get('PYTHONPATH', '')])
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd, env={**env, **variables}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(process: subprocess.Popen) -> tuple[int, str]:
        printed = process.communicate(timeout=500)[0]
        return process.returncode, printed

    def run(*command: object, cwd: Path = folder, **variables: str) -> tuple[int, str]:
        return finish(start(*command, cwd=cwd, **variables))

    def script(name: str) -> Path:
        return ROOT / 'tools' / name

    yield SimpleNamespace(
        root=ROOT, folder=folder, config=TOY / 'toy.py', start=start, finish=finish, run=run, script=script
    )
    assert end_processes(*mark) == []


@pytest.fixture
def steps() -> Callable[[Path, int], list[int]]:
    """The steps that a rank of the toy has noted in a work dir."""
    return lambda work_dir, rank: [int(line) for line in (work_dir / f'steps.{rank}').read_text().split()]
