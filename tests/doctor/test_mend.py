"""The commands that the doctor names."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from mmitpn.doctor import mend

REQUIREMENTS = Path(__file__).parents[2] / 'requirements'


def lines(name: str) -> list[str]:
    return [line for line in (REQUIREMENTS / name).read_text().splitlines() if not line.startswith('#')]


@pytest.mark.parametrize('stack', ['onedl', 'openmmlab'])
def test_versions_are_those_of_the_requirements(stack):
    assert set(mend.PINS[stack].values()) <= set(lines(f'{stack}.txt') + lines(f'mmcv-{stack}.txt'))
    assert set(mend.TORCH) == set(lines('torch.txt'))
    assert set(mend.BUILD) == set(lines('build.txt'))


@pytest.mark.parametrize(
    ('prefix', 'stack', 'says'),
    [
        ('/envs/a', 'onedl', 'MMITPN_VENV=/envs/a bash '),
        ('/envs/a-openmmlab', 'openmmlab', 'MMITPN_VENV=/envs/a bash '),
        (sys.base_prefix, 'onedl', 'bash '),
    ],
)
def test_the_installation_is_repaired_where_it_lies(monkeypatch, prefix, stack, says):
    monkeypatch.setattr(mend.sys, 'prefix', prefix)
    command = mend.whole(stack)
    assert command.startswith(says)
    words = shlex.split(command)
    assert Path(words[words.index('bash') + 1]).is_file()


def test_an_environment_that_the_installation_cannot_name_is_left_to_pip(monkeypatch):
    monkeypatch.setattr(mend.sys, 'prefix', '/envs/b')  # tools/install.sh would make /envs/b-openmmlab
    assert 'install.sh' not in mend.whole('openmmlab') + mend.operators('openmmlab')


def test_without_a_checkout_pip_does_it(monkeypatch, tmp_path):
    monkeypatch.setattr(mend, 'ROOT', tmp_path)
    for command in (mend.operators('onedl'), mend.whole('onedl'), mend.fresh('onedl')):
        assert 'install.sh' not in command
        assert 'MMCV_WITH_OPS=1' in command
        assert 'onedl-mmcv==' in command
        for part in command.split(' && '):
            assert shlex.split(part.removeprefix('MMCV_WITH_OPS=1 '))[1] == '-m'


def test_a_new_environment_is_another_one(monkeypatch):
    monkeypatch.setattr(mend.sys, 'prefix', '/envs/a')
    assert mend.fresh('onedl', 'python3.11').startswith('PYTHON=python3.11 MMITPN_VENV=/envs/a-new bash ')
