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
    assert {12: set(lines('torch-cuda12.txt')), 13: set(lines('torch.txt'))} == {
        release: set(pins) for release, pins in mend.TORCH.items()
    }
    (compiled,) = lines(f'mmcv-{stack}-compiled.txt')
    assert mend.PINS[stack]['mmcv'].replace('-lite', '') == compiled


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
        assert '--no-build-isolation' not in command  # beside torch, mmcv would be compiled
        assert ' onedl-mmcv==' in command
        assert command.endswith('-m mmitpn.ops install')
        for part in command.split(' && '):
            assert shlex.split(part)[1] == '-m'
    assert ' torch==2.10.0 torchvision==' in mend.torch_for('onedl', 12)


def test_torch_for_an_older_driver(monkeypatch):
    monkeypatch.setattr(mend.sys, 'prefix', '/envs/a')
    assert mend.torch_for('onedl', 12).endswith('install.sh --stack onedl --cuda 12')


def test_what_is_removed_before_the_operators_are_handed_over():
    assert mend.take_operators([Path('/a b/_ext.so')]).startswith("rm '/a b/_ext.so' && ")
    assert mend.take_operators().startswith(sys.executable)


def test_a_new_environment_is_another_one(monkeypatch):
    monkeypatch.setattr(mend.sys, 'prefix', '/envs/a')
    assert mend.fresh('onedl', 'python3.11').startswith('PYTHON=python3.11 MMITPN_VENV=/envs/a-new bash ')
