"""Checks of the interpreter, the libraries, the hosts, and of this project's names."""

from __future__ import annotations

import importlib
import platform
import re
import sys
from collections import Counter

from mmitpn.ops.install import compiled_extensions, find_mmcv

from .found import Diagnosis, installed, number, one_line, try_import
from .mend import fresh, operators, pip, put, take_operators, whole

# Import name -> distributions that have it, and their stack.
HOSTS = {
    'mmengine': {'onedl-mmengine': 'onedl', 'mmengine': 'openmmlab'},
    'mmcv': {'onedl-mmcv': 'onedl', 'mmcv': 'openmmlab', 'mmcv-lite': 'openmmlab'},
    'mmdet': {'onedl-mmdetection': 'onedl', 'mmdet': 'openmmlab'},
    'mmseg': {'onedl-mmsegmentation': 'onedl', 'mmsegmentation': 'openmmlab'},
    'mmpretrain': {'onedl-mmpretrain': 'onedl', 'mmpretrain': 'openmmlab'},
}
LIBRARIES = {'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy', 'cv2': 'opencv-python-headless'}
# They have the files of opencv-python-headless too.
OTHER_OPENCV = ('opencv-python', 'opencv-contrib-python', 'opencv-contrib-python-headless')
PARTS = ('models', 'datasets', 'evaluation', 'engine', 'visualization')
NEWEST_PYTHON = {'onedl': (3, 13), 'openmmlab': (3, 12)}
# What configs name, by the registry of mmengine that must find it.
PUBLIC = {
    'MODELS': ('mmitpn.FastITPN', 'mmitpn.ITPN', 'mmitpn.ITPNPyramid', 'mmitpn.DINO', 'mmitpn.MeanPoolClsHead'),
    'OPTIM_WRAPPER_CONSTRUCTORS': ('mmitpn.LayerDecayOptimWrapperConstructor',),
    'HOOKS': ('mmitpn.AtomicCheckpointHook',),
}


def find_stack() -> str:
    """The stack that most of the installed hosts belong to; onedl where there is none."""
    votes = Counter(stack for names in HOSTS.values() for name, stack in names.items() if installed(name))
    return max(NEWEST_PYTHON, key=lambda stack: votes[stack])


def mend_import(found: Diagnosis, module: str, error: Exception) -> str:
    """The command for a module that does not import.

    Args:
        found: Whose stack is used.
        module: Import name of a library or host.
        error: What importing it raised.
    """
    missing = (error.name or '') if isinstance(error, ModuleNotFoundError) else ''
    top, said = missing.partition('.')[0], str(error).lower()
    if missing == 'mmcv._ext':
        return take_operators()
    if 'libcudart' in said or re.search(r'mmcv\W+_ext', said):  # compiled for another torch, Python or CUDA
        folder = find_mmcv()
        return take_operators(compiled_extensions(folder) if folder else ())
    if module in HOSTS and 'mmcv' in said and top in ('', 'mmcv'):
        return operators(found.stack)
    if top in HOSTS or top in LIBRARIES:
        return put(found.stack, top, force=missing != top)
    if top:  # something that tools/install.sh installs along
        return whole(found.stack)
    blamed = re.search(r"module '(\w+)", str(error))  # has no attribute, has lost its files
    if blamed and (blamed[1] in HOSTS or blamed[1] in LIBRARIES):
        return put(found.stack, blamed[1], force=True)
    if 'numpy' in said:
        return put(found.stack, 'numpy', force=True)
    return put(found.stack, module, force=True)


def check_python(found: Diagnosis) -> None:
    """Look at the interpreter."""
    found.row('python', platform.python_version(), sys.executable)
    newest = NEWEST_PYTHON[found.stack]
    if not (3, 10) <= sys.version_info[:2] <= newest:
        found.problem(
            f'Python {platform.python_version()} is outside 3.10 to {newest[0]}.{newest[1]}, on which the {found.stack}'
            ' stack runs; make an environment with one of these',
            fresh(found.stack, 'python3.11'),
        )


def check_libraries(found: Diagnosis) -> None:
    """Look at torch and the other libraries both stacks use."""
    for module, distribution in LIBRARIES.items():
        error = try_import(module)
        seen = installed(distribution) or getattr(sys.modules.get(module), '__version__', None)
        found.row(module, seen, '' if error is None else 'does not import')
        if error is not None:
            found.problem(f'{module} does not import ({one_line(error)})', mend_import(found, module, error))
    headless = installed(LIBRARIES['cv2'])
    others = [name for name in OTHER_OPENCV if installed(name)]
    if headless and others:
        found.problem(
            f'{" and ".join(others)} and {LIBRARIES["cv2"]} are all installed and overwrite each other in {"cv2"!r}',
            f'{pip("uninstall", "-y", *others)} && {put(found.stack, "cv2", force=True)}',
        )


def check_stack(found: Diagnosis) -> None:
    """Look at which distributions the hosts come from."""
    seen: set[str] = set()
    doubled = False
    for module, names in HOSTS.items():
        there = [name for name in names if installed(name) is not None]
        if len(there) > 1:
            doubled = True
            found.problem(
                f'{" and ".join(there)} are both installed and overwrite each other in {module!r}',
                f'{pip("uninstall", "-y", *there)} && {put(found.stack, module)}',
            )
        seen |= {names[name] for name in there}
    if len(seen) == 2 and not doubled:
        found.problem(
            'the hosts are mixed from both stacks, which do not fit together; make an environment with one of them',
            fresh(found.stack),
        )
    found.row('stack', seen.pop() if len(seen) == 1 else None, 'by the names of the installed distributions')


def check_hosts(found: Diagnosis) -> None:
    """Import the hosts and their models."""
    for module, names in HOSTS.items():
        name = next((name for name in names if installed(name) is not None), None)
        error = try_import(module)
        note = name or 'not installed'
        if module in ('mmdet', 'mmseg', 'mmpretrain'):
            # A host imports its parts when a config names something of them, and each has needs of its own.
            for part in PARTS:
                error = error or try_import(f'{module}.{part}')
        found.row(module, name and installed(name), note if error is None else f'{note}, does not import')
        if error is not None:
            found.problem(f'{module} does not import ({one_line(error)})', mend_import(found, module, error))


def check_known_combinations(found: Diagnosis) -> None:
    """Look for combinations of versions that are known not to work."""
    names = ('numpy', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation', 'onedl-mmsegmentation')
    seen = {name: installed(name) for name in names}
    numpy_, mmcv = number(seen['numpy']), number(seen['mmcv'] or seen['mmcv-lite'])
    for host in ('mmdet', 'mmsegmentation'):
        if mmcv >= (2, 2) and seen[host]:
            found.problem(
                f'{host} {seen[host]} needs mmcv below 2.2.0, and {seen["mmcv"] or seen["mmcv-lite"]} is installed',
                operators('openmmlab'),
            )
    official = {name for names in HOSTS.values() for name, stack in names.items() if stack == 'openmmlab'}
    if numpy_ >= (2,) and any(installed(name) for name in official):
        found.problem(
            f'the official OpenMMLab packages need numpy below 2, and {seen["numpy"]} is installed',
            put('openmmlab', 'numpy'),
        )
    if numpy_ and numpy_ < (2,) and seen['onedl-mmsegmentation']:
        found.problem(f'onedl-mmsegmentation needs numpy 2, and {seen["numpy"]} is installed', put('onedl', 'numpy'))


def check_project(found: Diagnosis) -> None:
    """Look whether this project's own names are found through mmengine's registries."""
    found.row('mmitpn', importlib.import_module('mmitpn').__version__, str(installed('mmitpn') and 'installed'))
    if found.problems:
        return  # what a broken host hides is not to be mended here
    reasons: dict[str, list[str]] = {}
    for registry, keys in PUBLIC.items():
        for key in keys:
            try:
                if getattr(importlib.import_module('mmengine.registry'), registry).get(key) is None:
                    reasons.setdefault('no registry has it', []).append(key)
            except Exception as error:  # noqa: BLE001  as in try_import
                reasons.setdefault(one_line(error), []).append(key)
    for why, keys in reasons.items():
        found.problem(f'mmengine does not find type={", ".join(map(repr, keys))} ({why})', whole(found.stack))
