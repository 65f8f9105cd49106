"""The commands that the doctor names, and where their versions come from."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from mmitpn import installation
from mmitpn.installation import HOSTS, LIBRARIES, requirement

REQUIREMENTS = Path(__file__).parents[1] / 'requirements'


def lines(name: str) -> list[str]:
    return [line for line in (REQUIREMENTS / name).read_text().splitlines() if not line.startswith('#')]


@pytest.mark.parametrize('stack', installation.STACKS)
def test_versions_are_those_of_the_requirements(stack):
    pinned = {module: requirement(stack, module) for module in ('numpy', 'cv2', *HOSTS)}
    assert set(pinned.values()) <= set(lines(f'{stack}.txt') + lines(f'mmcv-{stack}.txt'))
    assert all('==' in line for line in pinned.values())
    for module, line in pinned.items():
        name = line.partition('==')[0]
        assert name == LIBRARIES[module] if module in LIBRARIES else HOSTS[module][name] == stack
    (compiled,) = lines(f'mmcv-{stack}-compiled.txt')
    assert pinned['mmcv'].replace('-lite', '') == compiled
    assert installation.install(stack, 'torch').endswith(' '.join([pinned['numpy'], *lines('torch.txt')]))
    assert installation.install(stack, 'mmdet').endswith(f'--no-deps {pinned["mmdet"]}')


@pytest.mark.parametrize(
    ('prefix', 'stack', 'start'),
    [
        ('/envs/a', 'onedl', 'MMITPN_VENV=/envs/a bash '),
        ('/envs/a-openmmlab', 'openmmlab', 'MMITPN_VENV=/envs/a bash '),
        (sys.base_prefix, 'onedl', 'bash '),
    ],
)
def test_the_installation_is_repaired_in_its_environment(monkeypatch, prefix, stack, start):
    monkeypatch.setattr(installation.sys, 'prefix', prefix)
    command = installation.repair(stack)
    assert command.startswith(start)
    words = shlex.split(command)
    assert Path(words[words.index('bash') + 1]).is_file()


def test_an_environment_that_install_sh_cannot_name_is_left_to_pip(monkeypatch):
    monkeypatch.setattr(installation.sys, 'prefix', '/envs/b')  # tools/install.sh would make /envs/b-openmmlab
    assert 'install.sh' not in installation.repair('openmmlab') + installation.install_mmcv('openmmlab')


@pytest.fixture(params=[True, False])
def wheel(request, monkeypatch, tmp_path) -> bool:
    """No checkout; whether the wheel carries requirements/."""
    monkeypatch.setattr(installation, 'ROOT', tmp_path / 'nowhere')
    monkeypatch.setattr(installation, 'PACKED', tmp_path)
    if request.param:
        shutil.copytree(REQUIREMENTS, tmp_path / 'requirements')
    return request.param


def test_without_a_checkout_pip_does_it(wheel):
    mmcv = ' onedl-mmcv==' if wheel else ' onedl-mmcv '
    for function in (installation.install_mmcv, installation.repair, installation.new_environment):
        command = function('onedl')
        assert 'install.sh' not in command
        assert '--no-build-isolation' not in command  # beside torch, mmcv would be compiled
        assert mmcv in command
        assert command.endswith('-m mmitpn.ops install')
        for part in command.split(' && '):
            assert shlex.split(part)[1] == '-m'
    command = installation.install_torch('onedl', 12)
    assert command.endswith(' '.join(lines('torch-cuda12.txt')) if wheel else ' numpy torch torchvision')


def test_without_a_pin_an_old_driver_is_to_be_updated(wheel, monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    message, command = installation.explain_old_driver((12, 4), 'onedl')
    assert ('or install torch==' in message) == wheel
    assert command.startswith('sudo ') != wheel


def test_torch_for_an_older_driver(monkeypatch):
    monkeypatch.setattr(installation.sys, 'prefix', '/envs/a')
    assert installation.install_torch('onedl', 12).endswith('install.sh --stack onedl --cuda 12')


def test_compiled_operators_are_removed_before_those_of_mmitpn_are_used(monkeypatch):
    monkeypatch.setattr(installation, 'find_mmcv', lambda: Path('/a b'))
    monkeypatch.setattr(installation, 'compiled_extensions', lambda folder: [folder / '_ext.so'])
    assert installation.use_own_operators(replace_compiled=True).startswith("rm '/a b/_ext.so' && ")
    assert installation.use_own_operators().startswith(sys.executable)
    monkeypatch.setattr(installation, 'find_mmcv', lambda: None)
    assert installation.use_own_operators(replace_compiled=True).startswith(sys.executable)


def test_a_new_environment_is_another_one(monkeypatch):
    monkeypatch.setattr(installation.sys, 'prefix', '/envs/a')
    command = installation.new_environment('onedl', 'python3.11')
    assert command.startswith('PYTHON=python3.11 MMITPN_VENV=/envs/a-new bash ')
