"""What is installed here, and the commands that install or fix it; nothing but the standard library is imported.

Versions are those of ``requirements/*.txt``, of the checkout or of the copy in a wheel (``setup.py``).
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import re
import shlex
import sys
import warnings
from collections import Counter
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path

from mmitpn.ops.install import compiled_extensions, find_mmcv

# Import name -> distributions that contain it, and their stack.
HOSTS = {
    'mmengine': {'onedl-mmengine': 'onedl', 'mmengine': 'openmmlab'},
    'mmcv': {'onedl-mmcv': 'onedl', 'mmcv': 'openmmlab', 'mmcv-lite': 'openmmlab'},
    'mmdet': {'onedl-mmdetection': 'onedl', 'mmdet': 'openmmlab'},
    'mmseg': {'onedl-mmsegmentation': 'onedl', 'mmsegmentation': 'openmmlab'},
    'mmpretrain': {'onedl-mmpretrain': 'onedl', 'mmpretrain': 'openmmlab'},
}
LIBRARIES = {'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy', 'cv2': 'opencv-python-headless'}
STACKS = ('onedl', 'openmmlab')
# The newest torch for each CUDA release that the package index's builds are made for.
TORCH = {13: 'torch.txt', 12: 'torch-cuda12.txt'}
DRIVERS = {11: '450', 12: '525', 13: '580'}  # first drivers of a CUDA release, as nvidia-smi shows them
ROOT = Path(__file__).resolve().parents[1]
PACKED = Path(__file__).resolve().parent / '.mim'


# --- what is installed -----------------------------------------------------------------------------------------------


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def version_tuple(text: str | None) -> tuple[int, ...]:
    """Turn '2.9.1+cu128' into (2, 9, 1), and None into ()."""
    return tuple(int(part) for part in re.findall(r'\d+', (text or '').partition('+')[0])[:3])


def find_stack() -> str:
    """The stack that most of the installed frameworks belong to; onedl where there is none."""
    votes = Counter(stack for names in HOSTS.values() for name, stack in names.items() if installed(name))
    return max(STACKS, key=lambda stack: votes[stack])


def read_requirements(name: str) -> list[str]:
    """The requirements in a file of ``requirements/``; empty where there is no such file."""
    path = next(
        (folder / 'requirements' / name for folder in (ROOT, PACKED) if (folder / 'requirements').is_dir()), None
    )
    lines = path.read_text(encoding='utf-8').splitlines() if path is not None and path.is_file() else []
    return [line for line in lines if line and not line.startswith('#')]


def requirement(stack: str, module: str) -> str:
    """The distribution of a library or framework, with its version: ``'numpy==2.2.6'``."""
    names = [name for name, one in HOSTS.get(module, {}).items() if one == stack] or [LIBRARIES.get(module, module)]
    pinned = {
        line.partition('==')[0]: line
        for file in (f'{stack}.txt', f'mmcv-{stack}.txt')
        for line in read_requirements(file)
    }
    return next((pinned[name] for name in names if name in pinned), names[0])


def try_import(name: str) -> Exception | None:
    """Import a module; return None, or what it raised."""
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():  # some packages tell what else could be installed
            warnings.simplefilter('ignore')
            module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  a broken package raises anything, and the others are still to be checked
        return error
    if getattr(module, '__file__', None) is None:  # Python takes a folder without __init__.py for a package too
        return ImportError(f"module '{name}' has lost its files", name=name)
    return None


def one_line(error: Exception) -> str:
    """Return the class and the message of an error in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]


# --- commands --------------------------------------------------------------------------------------------------------


def pip(*words: str) -> str:
    """A command of this interpreter's pip."""
    return shlex.join([sys.executable, '-m', 'pip', *words])


def install(stack: str, module: str, *, force: bool = False) -> str:
    """Install a library or framework in the version of the stack.

    Args:
        stack: 'onedl' or 'openmmlab'.
        module: Its import name.
        force: Also if the version is right, but the files are not.
    """
    if module == 'mmcv':
        return install_mmcv(stack)
    again = ['--force-reinstall'] if force else []
    if module in ('torch', 'torchvision'):
        # They depend on libraries of their own, and would take the newest numpy where there is none. Forced, their
        # own files are enough.
        return pip('install', *again, *(['--no-deps'] if force else [requirement(stack, 'numpy')]), *_torch())
    return pip('install', *again, '--no-deps', requirement(stack, module))


def install_mmcv(stack: str) -> str:
    """Install mmcv with the operators that it had: compiled ones where it was installed so, else those of mmitpn."""
    if _has_install_sh(stack):
        return repair(stack)
    # Isolated from this environment's torch, the build of mmcv leaves its extension out.
    python_only = pip('install', '--no-deps', '--no-cache-dir', requirement(stack, 'mmcv'))
    return f'{pip("uninstall", "-y", *HOSTS["mmcv"])} && {python_only} && {use_own_operators()}'


def use_own_operators(*, replace_compiled: bool = False) -> str:
    """Let mmcv use the PyTorch operators of this project; a compiled extension is removed first if asked for."""
    folder = find_mmcv() if replace_compiled else None
    compiled = compiled_extensions(folder) if folder else ()
    own = shlex.join([sys.executable, '-m', 'mmitpn.ops', 'install'])
    return f'{shlex.join(["rm", *map(str, compiled)])} && {own}' if compiled else own


def install_torch(stack: str, release: int) -> str:
    """Install the newest torch for a CUDA release, a key of ``TORCH``."""
    if _has_install_sh(stack):
        return _install_sh(_venv_name(stack), stack, '--cuda', str(release))
    return pip('install', requirement(stack, 'numpy'), *_torch(release))


def repair(stack: str) -> str:
    """Repeat the complete installation."""
    if _has_install_sh(stack):
        return _install_sh(_venv_name(stack), stack, '--repair')
    others = [requirement(stack, module) for module in ('numpy', 'cv2', *HOSTS) if module != 'mmcv']
    return f'{pip("install", *_torch(), *others)} && {install_mmcv(stack)}'


def new_environment(stack: str, python: str | None = None) -> str:
    """Make an environment next to this one, with another interpreter if one is named."""
    prefix = Path(sys.prefix).resolve()
    name = ROOT / '.venv' if sys.prefix == sys.base_prefix else prefix.with_name(f'{prefix.name}-new')
    if (ROOT / 'tools/install.sh').is_file():
        return (f'PYTHON={python} ' if python else '') + _install_sh(name, stack)
    create = shlex.join([python or sys.executable, '-m', 'venv', str(name)])
    return f'{create} && {repair(stack).replace(shlex.quote(sys.executable), shlex.quote(f"{name}/bin/python"))}'


def _torch(release: int = max(TORCH)) -> list[str]:
    return read_requirements(TORCH[release]) or ['torch', 'torchvision']


def _has_install_sh(stack: str) -> bool:
    """Whether tools/install.sh exists and works on this environment, or makes one where there is none."""
    return (ROOT / 'tools/install.sh').is_file() and (sys.prefix == sys.base_prefix or _venv_name(stack) is not None)


def _install_sh(venv: Path | None, stack: str, *options: str) -> str:
    """The command of tools/install.sh for an environment; None is its own choice."""
    variable = '' if venv is None else f'MMITPN_VENV={shlex.quote(str(venv))} '
    return variable + shlex.join(['bash', str(ROOT / 'tools/install.sh'), '--stack', stack, *options])


def _venv_name(stack: str) -> Path | None:
    """The MMITPN_VENV with which tools/install.sh works on this environment; None if there is none."""
    prefix = Path(sys.prefix).resolve()
    if sys.prefix == sys.base_prefix:
        return None
    if stack == 'onedl':
        return prefix
    return prefix.with_name(prefix.name.removesuffix(f'-{stack}')) if prefix.name.endswith(f'-{stack}') else None


def fix_import(stack: str, module: str, error: Exception) -> str:
    """The command for a module that does not import.

    Args:
        stack: 'onedl' or 'openmmlab'.
        module: Import name of a library or framework.
        error: What importing it raised.
    """
    missing = (error.name or '') if isinstance(error, ModuleNotFoundError) else ''
    top, text = missing.partition('.')[0], str(error).lower()
    if missing == 'mmcv._ext':
        return use_own_operators()
    if 'libcudart' in text or re.search(r'mmcv\W+_ext', text):  # compiled for another torch, Python or CUDA
        return use_own_operators(replace_compiled=True)
    if module in HOSTS and 'mmcv' in text and top in ('', 'mmcv'):
        return install_mmcv(stack)
    if top in HOSTS or top in LIBRARIES:
        return install(stack, top, force=missing != top)
    if top:  # a dependency that tools/install.sh installs
        return repair(stack)
    blamed = re.search(r"module '(\w+)", str(error))  # has no attribute, has lost its files
    if blamed and (blamed[1] in HOSTS or blamed[1] in LIBRARIES):
        return install(stack, blamed[1], force=True)
    return install(stack, 'numpy' if 'numpy' in text else module, force=True)


# --- GPU driver ------------------------------------------------------------------------------------------------------


def read_driver() -> tuple[tuple[int, int] | None, int]:
    """Ask NVIDIA's driver itself, without torch.

    Returns:
        The newest CUDA release it supports, or None without a driver; and the number of GPUs.
    """
    value, count = ctypes.c_int(), ctypes.c_int()
    try:
        driver = ctypes.CDLL('libcuda.so.1')
    except OSError:
        return None, 0
    if driver.cuDriverGetVersion(ctypes.byref(value)) != 0:
        return None, 0
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        count.value = 0
    return (value.value // 1000, value.value % 1000 // 10), count.value


def explain_old_driver(release: tuple[int, int], stack: str) -> tuple[str, str] | None:
    """Explain a driver that does not run the CUDA release of torch.

    Args:
        release: The newest CUDA release that the driver supports.
        stack: 'onedl' or 'openmmlab'.

    Returns:
        What is wrong, and the command that fixes it; None if the driver is new enough.
    """
    import torch

    built = version_tuple(torch.version.cuda)
    if not built or built[0] <= release[0]:
        return None
    older = max((major for major in TORCH if major <= release[0] and read_requirements(TORCH[major])), default=None)
    text = (
        f'torch {torch.__version__} is built for CUDA {torch.version.cuda}, but the driver supports CUDA {release[0]}.'
        f'{release[1]}; update it to {DRIVERS.get(built[0], "a later one")} or newer (on the host, for a container)'
    )
    if older is not None:
        return f'{text}, or install {_torch(older)[0]}, the newest for CUDA {older}', install_torch(stack, older)
    try:
        ubuntu = platform.freedesktop_os_release().get('ID') == 'ubuntu'
    except OSError:
        ubuntu = False
    return text, f'sudo {"ubuntu-drivers install" if ubuntu else "apt-get install nvidia-driver"} && sudo reboot'


def explain_unused_gpu() -> str | None:
    """One sentence, with the command that fixes it, if there is a GPU whose driver is too old for torch; else None."""
    release, gpus = read_driver()
    found = explain_old_driver(release, find_stack()) if gpus and release is not None else None
    return f'{found[0]}: {found[1]}' if found else None
