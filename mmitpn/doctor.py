"""What is installed, what is wrong with it, and the commands that fix it.

    mmitpn doctor                                       the installation
    mmitpn doctor --config CONFIG [--cfg-options ...]   and the data that a config names

Ends with status 1 if something that this project needs does not work, after checking everything, and 2 for a mistake
on the command line. It runs where torch or a framework is broken: only the standard library is imported with it.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mmitpn import installation
from mmitpn.installation import HOSTS, LIBRARIES, installed, one_line, try_import, version_tuple

PARTS = ('models', 'datasets', 'evaluation', 'engine', 'visualization')  # of mmdet, mmseg and mmpretrain
OTHER_OPENCV = ('opencv-python', 'opencv-contrib-python', 'opencv-contrib-python-headless')  # have the same files
NEWEST_PYTHON = {'onedl': (3, 13), 'openmmlab': (3, 12)}
# What configs name, by the registry of mmengine that must find it.
PUBLIC = {
    'MODELS': ('mmitpn.FastITPN', 'mmitpn.ITPN', 'mmitpn.ITPNPyramid', 'mmitpn.DINO', 'mmitpn.MeanPoolClsHead'),
    'OPTIM_WRAPPER_CONSTRUCTORS': ('mmitpn.LayerDecayOptimWrapperConstructor',),
    'HOOKS': ('mmitpn.AtomicCheckpointHook',),
}


class Problem(NamedTuple):
    """Something that does not work, and the command that fixes it."""

    message: str
    fix: str


@dataclass
class Diagnosis:
    """Rows of the table (name, version, note), problems, and remarks: what is slower or unused, but breaks nothing."""

    stack: str = 'onedl'
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[Problem] = field(default_factory=list)

    def row(self, name: str, version: str | None, note: str = '') -> None:
        """Add a row; without a version it has a dash."""
        self.rows.append((name, version or '-', note))

    def problem(self, message: str, fix: str) -> None:
        """Add a problem, once."""
        if Problem(message, fix) not in self.problems:
            self.problems.append(Problem(message, fix))

    def imported(self, module: str, version: str | None, note: str, error: Exception | None) -> None:
        """Add the row of a module, and a problem with the error if it does not import."""
        self.row(module, version, note if error is None else ', '.join(filter(None, (note, 'does not import'))))
        if error is not None:
            subject = "mmcv's operators do" if module == 'mmcv.ops' else f'{module} does'
            fix = installation.fix_import(self.stack, module.partition('.')[0], error)
            self.problem(f'{subject} not import ({one_line(error)})', fix)


def check_python(found: Diagnosis) -> None:
    """Check the interpreter."""
    found.row('python', platform.python_version(), sys.executable)
    newest = NEWEST_PYTHON[found.stack]
    if not (3, 10) <= sys.version_info[:2] <= newest:
        text = f'Python {platform.python_version()} is outside 3.10 to {newest[0]}.{newest[1]}, on which the'
        text += f' {found.stack} stack runs; make an environment with one of these'
        found.problem(text, installation.new_environment(found.stack, 'python3.11'))


def check_libraries(found: Diagnosis) -> None:
    """Check torch and the other libraries of both stacks."""
    for module, distribution in LIBRARIES.items():
        error = try_import(module)
        version = installed(distribution) or getattr(sys.modules.get(module), '__version__', None)
        found.imported(module, version, '', error)
    others = [name for name in OTHER_OPENCV if installed(name)]
    if installed(LIBRARIES['cv2']) and others:
        text = f"{' and '.join(others)} and {LIBRARIES['cv2']} are all installed and overwrite each other in 'cv2'"
        again = installation.install(found.stack, 'cv2', force=True)
        found.problem(text, f'{installation.pip("uninstall", "-y", *others)} && {again}')


def check_stack(found: Diagnosis) -> None:
    """Check which distributions the frameworks come from."""
    there = {module: [name for name in names if installed(name)] for module, names in HOSTS.items()}
    stacks = {HOSTS[module][name] for module, names in there.items() for name in names}
    doubled = {module: names for module, names in there.items() if len(names) > 1}
    for module, names in doubled.items():
        fix = f'{installation.pip("uninstall", "-y", *names)} && {installation.install(found.stack, module)}'
        found.problem(f'{" and ".join(names)} are both installed and overwrite each other in {module!r}', fix)
    if len(stacks) == 2 and not doubled:
        text = 'the frameworks are mixed from both stacks, which do not fit together; make an environment with one'
        found.problem(text, installation.new_environment(found.stack))
    found.row('stack', stacks.pop() if len(stacks) == 1 else None, 'by the names of the installed distributions')


def check_frameworks(found: Diagnosis) -> None:
    """Import the frameworks and their parts, which they import when a config names something of them."""
    for module, names in HOSTS.items():
        name = next(filter(installed, names), None)
        parts = [f'{module}.{part}' for part in PARTS] if module in ('mmdet', 'mmseg', 'mmpretrain') else []
        error = next(filter(None, map(try_import, (module, *parts))), None)
        found.imported(module, name and installed(name), name or 'not installed', error)


def check_operators(found: Diagnosis) -> None:
    """Check mmcv's compiled operators, and whether they run on the GPU."""
    torch = sys.modules.get('torch')
    if torch is None or 'mmcv' not in sys.modules:
        return
    error = try_import('mmcv.ops')
    if error is not None:
        found.imported('mmcv.ops', None, '', error)
        return
    compiled = importlib.import_module('mmcv.ops').get_compiling_cuda_version()
    if 'mmitpn' in compiled:
        found.row('mmcv.ops', 'mmitpn', "not compiled: this project's operators, in PyTorch (mmitpn.ops)")
        return
    cuda, built = compiled if re.match(r'\d', compiled) else None, torch.version.cuda
    found.row('mmcv.ops', 'CPU and CUDA' if cuda else 'CPU', f'CUDA {cuda}' if cuda else 'no CUDA operators')
    if cuda and version_tuple(cuda)[0] != (version_tuple(built) or (0,))[0]:
        text = f"mmcv's operators are built for CUDA {cuda}, and torch for {f'CUDA {built}' if built else 'none'}"
        found.problem(text, installation.install_mmcv(found.stack))
    if torch.cuda.is_available() and not cuda:
        text = "a GPU is here but mmcv's operators are compiled for the CPU only: those that mmdet and mmseg call fail"
        text += ' on GPU tensors; those of mmitpn run there'
        found.remarks.append(Problem(text, installation.use_own_operators(replace_compiled=True)))


def check_gpu(found: Diagnosis) -> None:
    """Compare the CUDA release that torch is built for with the driver's."""
    release, gpus = installation.read_driver()
    driver = 'no NVIDIA driver' if release is None else f'the driver supports CUDA {release[0]}.{release[1]}'
    torch = sys.modules.get('torch')
    if torch is None:
        found.row('GPU', f'{gpus} found' if gpus else 'none', driver)
        return
    built = torch.version.cuda
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{gpus}, not used' if gpus else 'none'
    found.row('GPU', name, f'torch is built {f"for CUDA {built}" if built else "without CUDA"}; {driver}')
    if gpus and built is None:
        torch_again = [installation.install(found.stack, 'torch', force=force) for force in (True, False)]
        text = f'a GPU is here, but torch {torch.__version__} is built without CUDA and trains on the CPU'
        found.remarks.append(Problem(text, ' && '.join([*torch_again, installation.install_mmcv(found.stack)])))
    elif gpus and (old := installation.explain_old_driver(release, found.stack)):
        found.problem(*old)


def check_known_combinations(found: Diagnosis) -> None:
    """Check for combinations of versions that are known not to work."""
    numpy, mmcv = version_tuple(installed('numpy')), installed('mmcv') or installed('mmcv-lite')
    for name in filter(installed, ('mmdet', 'mmsegmentation') if version_tuple(mmcv) >= (2, 2) else ()):
        text = f'{name} {installed(name)} needs mmcv below 2.2.0, and {mmcv} is installed'
        found.problem(text, installation.install_mmcv('openmmlab'))
    pretrain, transformers = installed('onedl-mmpretrain') or installed('mmpretrain'), installed('transformers')
    if version_tuple(transformers) >= (5,) and pretrain and installed('pycocotools'):
        text = f'mmpretrain {pretrain}, which mmdet imports, does not import beside transformers {transformers}'
        found.problem(text, installation.pip('install', 'transformers<5'))
    official = any(installed(name) for names in HOSTS.values() for name, stack in names.items() if stack == 'openmmlab')
    for wrong, stack, wants in (
        (numpy >= (2,) and official, 'openmmlab', 'the official OpenMMLab packages need numpy below 2'),
        (() < numpy < (2,) and installed('onedl-mmsegmentation'), 'onedl', 'onedl-mmsegmentation needs numpy 2'),
    ):
        if wrong:
            found.problem(f'{wants}, and {installed("numpy")} is installed', installation.install(stack, 'numpy'))


def check_project(found: Diagnosis) -> None:
    """Check that mmengine's registries find this project's names, unless something else is broken."""
    found.row('mmitpn', importlib.import_module('mmitpn').__version__, str(installed('mmitpn') and 'installed'))
    if found.problems:
        return
    reasons: dict[str, list[str]] = {}
    for registry, keys in PUBLIC.items():
        for key in keys:
            try:
                if getattr(importlib.import_module('mmengine.registry'), registry).get(key) is None:
                    reasons.setdefault('no registry has it', []).append(key)
            except Exception as error:  # noqa: BLE001  as in try_import
                reasons.setdefault(one_line(error), []).append(key)
    for why, keys in reasons.items():
        text = f'mmengine does not find type={", ".join(map(repr, keys))} ({why})'
        found.problem(text, installation.repair(found.stack))


CHECKS = (
    *(check_python, check_libraries, check_stack, check_frameworks),
    *(check_operators, check_gpu, check_known_combinations, check_project),
)


def check_data(found: Diagnosis, config: str, options: Sequence[str]) -> None:
    """Look for the data of a config (a file, or FRAMEWORK::NAME) with overrides (``a.b.c=1``), then check it."""
    if try_import('mmengine') is not None or try_import('mmitpn.config_check.config') is not None:
        found.row('data', None, f'not checked: {config} cannot be read before the problems below are fixed')
        return
    from mmitpn.config_check.config import report_data
    from mmitpn.engine.cli import load_config, parse_options
    from mmitpn.engine.config_utils import register_host_configs

    register_host_configs()
    words = [sys.executable, '-m', 'mmitpn', 'data', 'check', config, *(['--cfg-options'] if options else []), *options]
    rows, problems = report_data(load_config(config, parse_options(options)), config, check_again=shlex.join(words))
    for row in rows:
        found.row(*row)
    for problem in problems:
        found.problem(*problem)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a mistake is one line and status 2."""
    layout = {'usage': argparse.SUPPRESS, 'formatter_class': argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog='mmitpn doctor', description=__doc__, **layout)
    parser.add_argument('--config', metavar='CONFIG', help='also look for the data of this config or FRAMEWORK::NAME')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override settings of CONFIG')
    args = parser.parse_args(argv)
    if wrong := [option for option in args.cfg_options if '=' not in option]:
        parser.error(f'--cfg-options {wrong[0]!r} must be KEY=VALUE')
    if args.cfg_options and not args.config:
        parser.error('--cfg-options belongs to --config CONFIG')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Check and print; returns 0 if everything works, 1 if not, 2 for a config that cannot be read."""
    args = parse_args(argv)
    found = Diagnosis(stack=installation.find_stack())
    for check in CHECKS:
        check(found)
    status = 0
    if args.config:
        try:
            check_data(found, args.config, args.cfg_options)
        except Exception as error:  # noqa: BLE001  a config is a program: it raises anything, and the table is wanted
            sys.stderr.write(f'error: {args.config}: {" ".join(str(error).split()) or type(error).__name__}\n')
            status = 2
    width = max(len(version) for _, version, _ in found.rows) + 2
    for name, version, note in found.rows:
        print(f'{name:<13}{version:<{width}}{note}'.rstrip())
    for kind, entries in (('note', found.remarks), ('problem', found.problems)):
        for entry in entries:
            print(f'{kind}: {entry.message}\n  fix: {entry.fix}')
    print(f'{len(found.problems)} problem(s)' if found.problems else 'everything that mmitpn needs works')
    return status or (1 if found.problems else 0)


if __name__ == '__main__':
    sys.exit(main())
