"""What is installed here, and what is wrong with it: ``python -m mmitpn.doctor``.

Ends with status 1 if something that this project needs does not work, after looking at everything.
"""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

# Import name -> distribution on the onedl stack and on the openmmlab stack.
HOSTS = {
    'mmengine': ('onedl-mmengine', 'mmengine'),
    'mmcv': ('onedl-mmcv', 'mmcv'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}
LIBRARIES = {'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy', 'cv2': 'opencv-python-headless'}
PARTS = ('models', 'datasets', 'evaluation', 'engine', 'visualization')
STACKS = ('onedl', 'openmmlab')
# What configs name, by the registry of mmengine that must find it.
PUBLIC = {
    'MODELS': ('mmitpn.FastITPN', 'mmitpn.ITPN', 'mmitpn.ITPNPyramid', 'mmitpn.DINO', 'mmitpn.MeanPoolClsHead'),
    'OPTIM_WRAPPER_CONSTRUCTORS': ('mmitpn.LayerDecayOptimWrapperConstructor',),
    'HOOKS': ('mmitpn.AtomicCheckpointHook',),
}
REINSTALL = "run 'bash tools/install.sh' (add '--stack openmmlab' for the official packages)"


@dataclass
class Diagnosis:
    """What was found: rows of the table (name, version, note), problems, and remarks that break nothing."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def installed(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def number(text: str | None) -> tuple[int, ...]:
    """Turn '2.9.1+cu128' into (2, 9, 1), and None into ()."""
    return tuple(int(part) for part in re.findall(r'\d+', (text or '').partition('+')[0])[:3])


def try_import(name: str) -> str | None:
    """Import a module; return None, or in one line why it does not import."""
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  a broken package raises anything, and the others are still to be seen
        return one_line(error)
    return None


def one_line(error: Exception) -> str:
    """Return the kind and the message of an error in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]


def check_python(found: Diagnosis) -> None:
    """Look at the interpreter."""
    found.rows.append(('python', platform.python_version(), sys.executable))
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        found.problems.append(
            f'Python {platform.python_version()} is outside 3.10 to 3.12;'
            ' install one of these and name it: PYTHON=python3.11 bash tools/install.sh'
        )


def check_libraries(found: Diagnosis) -> None:
    """Look at torch and the other libraries both stacks use."""
    for module, distribution in LIBRARIES.items():
        broken = try_import(module)
        seen = installed(distribution) or getattr(sys.modules.get(module), '__version__', None)
        found.rows.append((module, seen or '-', '' if broken is None else 'does not import'))
        if broken is not None:
            found.problems.append(f'{module} does not import ({broken}); {REINSTALL}')


def check_stack(found: Diagnosis) -> str | None:
    """Look at which distributions the hosts come from; return the stack, or None where it is mixed or absent."""
    seen: set[str] = set()
    for module, names in HOSTS.items():
        versions = [installed(name) for name in names]
        both = [name for name, number_ in zip(names, versions, strict=True) if number_ is not None]
        if len(both) == 2:
            found.problems.append(
                f'{both[0]} and {both[1]} are both installed and overwrite each other in {module!r};'
                f' uninstall both, then {REINSTALL}'
            )
        seen |= {stack for stack, number_ in zip(STACKS, versions, strict=True) if number_ is not None}
    if len(seen) == 2 and not any('overwrite' in problem for problem in found.problems):
        found.problems.append(f'the hosts are mixed from both stacks; make a new environment: {REINSTALL}')
    stack = seen.pop() if len(seen) == 1 else None
    found.rows.append(('stack', stack or '-', 'by the names of the installed distributions'))
    return stack


def check_hosts(found: Diagnosis) -> None:
    """Import the hosts, their models and mmcv's operators."""
    for module, names in HOSTS.items():
        name = next((name for name in names if installed(name) is not None), None)
        broken = try_import(module)
        note = name or 'not installed'
        if module in ('mmdet', 'mmseg', 'mmpretrain'):
            # A host imports its parts when a config names something of them, and each has needs of its own.
            for part in PARTS:
                broken = broken or try_import(f'{module}.{part}')
        found.rows.append(
            (module, installed(name) if name else '-', note if broken is None else f'{note}, does not import')
        )
        if broken is not None:
            found.problems.append(f'{module} does not import ({broken}); {REINSTALL}')


def check_operators(found: Diagnosis) -> None:
    """Look for mmcv's compiled operators, and for those that run on the GPU."""
    if 'mmcv' not in sys.modules or 'torch' not in sys.modules:
        return
    import torch

    broken = try_import('mmcv.ops')
    gpu = torch.cuda.is_available()
    if broken is not None:
        found.rows.append(('mmcv.ops', '-', 'does not import'))
        found.problems.append(f"mmcv's compiled operators do not import ({broken}); compile them again: {REINSTALL}")
        return
    from mmcv.ops import get_compiling_cuda_version

    compiled = get_compiling_cuda_version()
    cuda = compiled if re.match(r'\d', compiled) else None
    found.rows.append(('mmcv.ops', 'CPU and CUDA' if cuda else 'CPU', f'CUDA {cuda}' if cuda else 'no CUDA operators'))
    found.rows.append(
        ('GPU', torch.cuda.get_device_name() if gpu else 'none', f'torch is built for CUDA {torch.version.cuda}')
    )
    if gpu and not cuda:
        found.remarks.append(
            "a GPU is here but mmcv's CUDA operators are not built: deformable attention runs in pure PyTorch, slower"
            f' and with more memory; install the CUDA toolkit {torch.version.cuda} (nvcc) and {REINSTALL}'
        )


def check_known_combinations(found: Diagnosis) -> None:
    """Look for combinations of versions that are known not to work."""
    seen = {name: installed(name) for names in (*HOSTS.values(), ('torch', 'numpy')) for name in names}
    torch_, numpy_, mmcv, fork = (number(seen[name]) for name in ('torch', 'numpy', 'mmcv', 'onedl-mmcv'))
    if torch_ >= (2, 14) and fork and fork <= (2, 3, 6):
        found.problems.append(
            f'torch {seen["torch"]} needs C++20, for which onedl-mmcv {seen["onedl-mmcv"]} does not ask its compiler,'
            ' so its operators cannot be built; install torch==2.9.1'
        )
    for host in ('mmdet', 'mmsegmentation'):
        if mmcv >= (2, 2) and seen[host]:
            found.problems.append(
                f'{host} {seen[host]} needs mmcv below 2.2.0, and {seen["mmcv"]} is installed; install mmcv==2.1.0'
            )
    if numpy_ >= (2,) and any(seen[names[1]] for names in HOSTS.values()):
        found.problems.append(
            f'the official OpenMMLab packages need numpy below 2, and {seen["numpy"]} is installed;'
            ' install numpy==1.26.4'
        )
    if numpy_ and numpy_ < (2,) and seen['onedl-mmsegmentation']:
        found.problems.append(
            f'onedl-mmsegmentation needs numpy 2, and {seen["numpy"]} is installed; install numpy==2.2.6'
        )


def check_project(found: Diagnosis) -> None:
    """Look whether this project's own names are found through mmengine's registries."""
    found.rows.append(
        ('mmitpn', importlib.import_module('mmitpn').__version__, str(installed('mmitpn') and 'installed'))
    )
    if try_import('mmengine') is not None:
        return
    for registry, keys in PUBLIC.items():
        for key in keys:
            try:
                missing = getattr(importlib.import_module('mmengine.registry'), registry).get(key) is None
                why = 'no registry has it'
            except Exception as error:  # noqa: BLE001  as in try_import
                missing, why = True, one_line(error)
            if missing:
                found.problems.append(
                    f"type='{key}' is not found by mmengine ({why}); correct that, or install again: 'pip install -e .'"
                )


CHECKS: tuple[Callable[[Diagnosis], object], ...] = (
    check_python,
    check_libraries,
    check_stack,
    check_hosts,
    check_operators,
    check_known_combinations,
    check_project,
)


def diagnose() -> Diagnosis:
    """Look at everything, whatever is broken on the way.

    Returns:
        The rows, problems and remarks found.
    """
    found = Diagnosis()
    for check in CHECKS:
        check(found)
    return found


def main() -> int:
    """Print the table and the problems.

    Returns:
        0 if everything that this project needs works, else 1.
    """
    found = diagnose()
    width = max(len(version_) for _, version_, _ in found.rows) + 2
    for name, version_, note in found.rows:
        print(f'{name:<13}{version_:<{width}}{note}'.rstrip())
    for remark in found.remarks:
        print(f'note: {remark}')
    for problem in found.problems:
        print(f'problem: {problem}')
    print(f'{len(found.problems)} problem(s)' if found.problems else 'everything that mmitpn needs works')
    return 1 if found.problems else 0


if __name__ == '__main__':
    sys.exit(main())
