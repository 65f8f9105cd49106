"""Checks of mmcv's compiled operators, and of what torch, the operators and the driver say about CUDA."""

from __future__ import annotations

import ctypes
import platform
import re
import sys

from mmitpn.ops.install import compiled_extensions, find_mmcv

from .environment import find_stack, mend_import
from .found import Diagnosis, number, one_line, try_import
from .mend import TORCH, operators, put, take_operators, torch_for

# First drivers of a CUDA release, for those who look at nvidia-smi.
DRIVERS = {11: '450', 12: '525', 13: '580'}


def read_driver() -> tuple[tuple[int, int] | None, int]:
    """Ask NVIDIA's driver itself, without torch.

    Returns:
        The newest CUDA release it supports, or None without a driver; and how many GPUs it shows.
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


def check_gpu(found: Diagnosis) -> None:
    """Compare the CUDA release that torch is built for with the driver's."""
    release, gpus = read_driver()
    driver = 'no NVIDIA driver' if release is None else f'the driver supports CUDA {release[0]}.{release[1]}'
    torch = sys.modules.get('torch')
    if torch is None:
        found.row('GPU', f'{gpus} found' if gpus else 'none', driver)
        return
    built = torch.version.cuda
    usable = torch.cuda.is_available()
    words = f'torch is built for CUDA {built}' if built else 'torch is built without CUDA'
    name = torch.cuda.get_device_name() if usable else f'{gpus}, not used' if gpus else 'none'
    found.row('GPU', name, f'{words}; {driver}')
    if not gpus or release is None:
        return
    if built is None:
        found.remark(
            f'a GPU is here, but torch {torch.__version__} is built without CUDA and trains on the CPU',
            f'{put(found.stack, "torch", force=True)} && {put(found.stack, "torch")} && {operators(found.stack)}',
        )
        return
    says, command = _too_old(release, found.stack)
    if says:
        found.problem(says, command)


def unused_gpu() -> str | None:
    """One sentence with the command that helps where a GPU is here whose driver is too old for torch; else None."""
    release, gpus = read_driver()
    if not gpus or release is None:
        return None
    says, command = _too_old(release, find_stack())
    return f'{says}: {command}' if says else None


def _too_old(release: tuple[int, int], stack: str) -> tuple[str, str]:
    """What is wrong where the driver does not run the CUDA release of torch, and the command; two empty texts if not.

    Args:
        release: The newest CUDA release that the driver supports.
        stack: 'onedl' or 'openmmlab'.
    """
    import torch

    built = number(torch.version.cuda)
    if not built or built[0] <= release[0]:
        return '', ''
    older = max((major for major in TORCH if major <= release[0]), default=None)
    says = (
        f'torch {torch.__version__} is built for CUDA {torch.version.cuda}, but the driver supports CUDA {release[0]}.'
        f'{release[1]}; update it to {DRIVERS[built[0]]} or newer (on the host, for a container)'
    )
    if older is None:
        return says, _update_driver()
    return f'{says}, or install {TORCH[older][0]}, the newest for CUDA {older}', torch_for(stack, older)


def _update_driver() -> str:
    """The command that installs a newer driver."""
    try:
        ubuntu = platform.freedesktop_os_release().get('ID') == 'ubuntu'
    except OSError:
        ubuntu = False
    return f'sudo {"ubuntu-drivers install" if ubuntu else "apt-get install nvidia-driver"} && sudo reboot'


def check_operators(found: Diagnosis) -> None:
    """Look for mmcv's compiled operators, and for those that run on the GPU."""
    if 'mmcv' not in sys.modules or 'torch' not in sys.modules:
        return
    import torch

    error = try_import('mmcv.ops')
    if error is not None:
        found.row('mmcv.ops', None, 'does not import')
        found.problem(f"mmcv's operators do not import ({one_line(error)})", mend_import(found, 'mmcv', error))
        return
    from mmcv.ops import get_compiling_cuda_version

    compiled = get_compiling_cuda_version()
    cuda = compiled if re.match(r'\d', compiled) else None
    if 'mmitpn' in compiled:
        found.row('mmcv.ops', 'mmitpn', "not compiled: this project's operators, in PyTorch (mmitpn.ops)")
        return
    found.row('mmcv.ops', 'CPU and CUDA' if cuda else 'CPU', f'CUDA {cuda}' if cuda else 'no CUDA operators')
    built = torch.version.cuda
    if cuda and number(cuda)[0] != (number(built) or (0,))[0]:
        found.problem(
            f"mmcv's operators are built for CUDA {cuda}, and torch for {f'CUDA {built}' if built else 'none'}",
            operators(found.stack),
        )
    if torch.cuda.is_available() and not cuda:
        folder = find_mmcv()
        found.remark(
            "a GPU is here but mmcv's operators are compiled for the CPU only: what mmdet and mmseg call of them fails "
            'on GPU tensors; those of mmitpn run there',
            take_operators(compiled_extensions(folder) if folder else ()),
        )
