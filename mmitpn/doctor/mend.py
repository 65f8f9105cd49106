"""The commands that mend this environment, with the versions that the project is tested with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# Import name -> distribution and version, for each stack: the same as in requirements/, which a wheel does not carry.
PINS = {
    'onedl': {
        'numpy': 'numpy==2.2.6',
        'cv2': 'opencv-python-headless==4.12.0.88',
        'mmengine': 'onedl-mmengine==0.10.12',
        'mmcv': 'onedl-mmcv==2.3.6',
        'mmdet': 'onedl-mmdetection==3.5.1',
        'mmseg': 'onedl-mmsegmentation==1.4.2',
        'mmpretrain': 'onedl-mmpretrain==1.3.6',
    },
    'openmmlab': {
        'numpy': 'numpy==1.26.4',
        'cv2': 'opencv-python-headless==4.11.0.86',
        'mmengine': 'mmengine==0.10.7',
        'mmcv': 'mmcv-lite==2.1.0',
        'mmdet': 'mmdet==3.3.0',
        'mmseg': 'mmsegmentation==1.2.2',
        'mmpretrain': 'mmpretrain==1.2.0',
    },
}
# The newest torch for each CUDA release that the package index's builds are made for.
TORCH = {13: ('torch==2.14.1', 'torchvision==0.29.1'), 12: ('torch==2.10.0', 'torchvision==0.25.0')}
ROOT = Path(__file__).resolve().parents[2]


def pip(*words: str) -> str:
    """A command of this interpreter's pip."""
    return shlex.join([sys.executable, '-m', 'pip', *words])


def put(stack: str, module: str, *, force: bool = False) -> str:
    """Install a library or host as the stack has it.

    Args:
        stack: 'onedl' or 'openmmlab'.
        module: Its import name.
        force: Also where the version is right, but the files are not.
    """
    if module == 'mmcv':
        return operators(stack)
    again = ['--force-reinstall'] if force else []
    if module in ('torch', 'torchvision'):
        # They bring libraries of their own along, and would take the newest numpy where there is none. Forced, their
        # own files are enough.
        return pip('install', *again, *(['--no-deps'] if force else [PINS[stack]['numpy']]), *TORCH[max(TORCH)])
    return pip('install', *again, '--no-deps', PINS[stack][module])


def operators(stack: str) -> str:
    """Install mmcv with the operators that it had: compiled ones where it was installed so, else those of mmitpn."""
    if _can_install(stack):
        return whole(stack)
    # Isolated from this environment's torch, the build of mmcv leaves its extension out.
    python_only = pip('install', '--no-deps', '--no-cache-dir', PINS[stack]['mmcv'])
    return f'{pip("uninstall", "-y", "mmcv", "mmcv-lite", "onedl-mmcv")} && {python_only} && {take_operators()}'


def torch_for(stack: str, release: int) -> str:
    """Install the newest torch for a CUDA release, a key of ``TORCH``."""
    if _can_install(stack):
        return _install_sh(_venv_name(stack), stack, '--cuda', str(release))
    return pip('install', PINS[stack]['numpy'], *TORCH[release])


def take_operators(instead_of: Sequence[Path] = ()) -> str:
    """Hand the PyTorch operators of this project to an mmcv without compiled ones.

    Args:
        instead_of: The compiled extension that is removed first.
    """
    install = shlex.join([sys.executable, '-m', 'mmitpn.ops', 'install'])
    return f'{shlex.join(["rm", *map(str, instead_of)])} && {install}' if instead_of else install


def whole(stack: str) -> str:
    """Go through the whole installation again."""
    if _can_install(stack):
        return _install_sh(_venv_name(stack), stack, '--repair')
    hosts = [pin for module, pin in PINS[stack].items() if module != 'mmcv']
    return f'{pip("install", *TORCH[max(TORCH)], *hosts)} && {operators(stack)}'


def fresh(stack: str, python: str | None = None) -> str:
    """Make an environment beside this one, with another interpreter if one is named."""
    place = Path(sys.prefix).resolve()
    name = ROOT / '.venv' if sys.prefix == sys.base_prefix else place.with_name(f'{place.name}-new')
    if (ROOT / 'tools/install.sh').is_file():
        return (f'PYTHON={python} ' if python else '') + _install_sh(name, stack)
    made = shlex.join([python or sys.executable, '-m', 'venv', str(name)])
    return f'{made} && {whole(stack).replace(shlex.quote(sys.executable), shlex.quote(f"{name}/bin/python"))}'


def _can_install(stack: str) -> bool:
    """Whether tools/install.sh is there and works on this environment, or makes one where there is none."""
    there = (ROOT / 'tools/install.sh').is_file()
    return there and (sys.prefix == sys.base_prefix or _venv_name(stack) is not None)


def _install_sh(venv: Path | None, stack: str, *options: str) -> str:
    """The command of tools/install.sh for an environment; None is its own choice."""
    where = '' if venv is None else f'MMITPN_VENV={shlex.quote(str(venv))} '
    return where + shlex.join(['bash', str(ROOT / 'tools/install.sh'), '--stack', stack, *options])


def _venv_name(stack: str) -> Path | None:
    """What MMITPN_VENV must be for tools/install.sh to work on this environment; None where it can not."""
    place = Path(sys.prefix).resolve()
    if sys.prefix == sys.base_prefix:
        return None
    if stack == 'onedl':
        return place
    return place.with_name(place.name.removesuffix(f'-{stack}')) if place.name.endswith(f'-{stack}') else None
