"""Make an installed mmcv use the operators of this package: ``python -m mmitpn.ops install|status|uninstall``.

``mmcv._ext`` is the only compiled module that mmcv's Python code imports. Where mmcv is installed without it, a file
``mmcv/_ext.py`` re-exports :mod:`mmitpn.ops.extension`. Python prefers a compiled extension in the same folder to that
file. mmcv is located without importing it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

# How to get the operators that only a compiled mmcv has.
COMPILED = (
    'to compile mmcv, run "bash tools/install.sh --compiled" in a checkout of mmitpn, elsewhere '
    '"MMCV_WITH_OPS=1 pip install --no-build-isolation onedl-mmcv==2.3.6"'
)
MARKER = '# Written by: python -m mmitpn.ops install'
SOURCE = f"""{MARKER} (and removed by: python -m mmitpn.ops uninstall)
try:
    from mmitpn.ops.extension import *  # noqa: F403
except ModuleNotFoundError as error:
    if (error.name or '').partition('.')[0] != 'mmitpn':
        raise
    raise ImportError(
        f'mmcv has no compiled operators, and {{__file__}} takes those of mmitpn, but there is no module '
        f'{{error.name}}; run "python -m pip install ." in a checkout of mmitpn, or remove this file and compile mmcv: '
        {COMPILED!r}
    ) from error
"""


class OperatorsError(RuntimeError):
    """The operators cannot be installed or removed: one sentence with the command that fixes it."""


@dataclass(frozen=True)
class Status:
    """Which operators an installed mmcv has.

    Attributes:
        kind: ``'compiled'``; ``'ours'``, those of this package; ``'none'``; ``'broken'``, a compiled extension that
            does not load; ``'foreign'``, a file ``_ext.py`` that this package did not write; ``'missing'``, no mmcv.
        message: One sentence about it, with the command that fixes it if there is a problem.
        folder: mmcv's folder, None where there is none.
    """

    kind: str
    message: str
    folder: Path | None = None


def find_mmcv() -> Path | None:
    """The folder of the installed mmcv, or None; mmcv is not imported."""
    spec = find_spec('mmcv')
    if spec is None or not spec.has_location or spec.origin is None:  # a namespace package, left by an uninstalled mmcv
        return None
    return Path(spec.origin).parent


def compiled_extensions(folder: Path) -> list[Path]:
    """The compiled extensions in mmcv's folder; those that this interpreter would load come first."""
    files = [path for path in sorted(folder.glob('_ext*')) if path.suffix in ('.so', '.pyd')]
    fitting = [folder / f'_ext{suffix}' for suffix in EXTENSION_SUFFIXES]
    return sorted(files, key=lambda path: path not in fitting)


def status() -> Status:
    """Find out which operators mmcv has. A compiled extension is loaded once, in a separate process."""
    folder = find_mmcv()
    if folder is None:
        return Status('missing', 'mmcv is not installed; run "bash tools/install.sh" in a checkout of mmitpn')
    compiled = compiled_extensions(folder)
    if compiled:
        error = _load_error(compiled[0])
        if error is None:
            return Status('compiled', f'mmcv uses its compiled operators ({compiled[0]})', folder)
        return Status(
            'broken',
            f'the compiled operators {compiled[0]} do not load, as when they were built for another torch or Python '
            f'({error}); to use those of mmitpn, run "rm {" ".join(map(str, compiled))} && {_command("install")}"; '
            f'{COMPILED}',
            folder,
        )
    file = folder / '_ext.py'
    if not os.path.lexists(file):
        return Status('none', f'the mmcv in {folder} has no operators; run "{_command("install")}"', folder)
    if _is_ours(file):
        return Status('ours', f'mmcv uses the PyTorch operators of mmitpn ({file})', folder)
    return Status(
        'foreign',
        f'mmcv uses {file}, which mmitpn did not write; to use the operators of mmitpn, run '
        f'"rm -r {file} && {_command("install")}"',
        folder,
    )


def explain_import(error: ImportError) -> str | None:
    """How to fix an import that failed because of mmcv or its operators.

    Args:
        error: What importing mmcv, mmdet, mmseg or mmpretrain raised.

    Returns:
        One sentence with the command; None if mmcv is not the reason.
    """
    if (error.name or '').partition('.')[0] != 'mmcv' and 'mmcv' not in str(error):
        return None
    found = status()
    return found.message if found.kind in ('missing', 'none', 'broken') else None


def install() -> str:
    """Make mmcv use the operators of this package.

    Returns:
        One sentence about what was done.

    Raises:
        OperatorsError: If mmcv is missing, has a compiled extension or another ``_ext.py``, or cannot be written to.
    """
    folder = find_mmcv()
    if folder is None:
        raise OperatorsError(status().message)
    file = folder / '_ext.py'
    compiled = compiled_extensions(folder)
    if compiled:
        found = status()
        if found.kind == 'broken':
            raise OperatorsError(found.message)
        raise OperatorsError(
            f'mmcv has compiled operators, which stay in use ({compiled[0]}); to use those of mmitpn, run '
            f'"rm {" ".join(map(str, compiled))} && {_command("install")}"'
        )
    if os.path.lexists(file) and not _is_ours(file):
        raise OperatorsError(status().message)
    if file.is_file() and file.read_text(encoding='utf-8') == SOURCE:
        return f'mmcv already uses the PyTorch operators of mmitpn ({file})'
    try:
        _write(file)
    except OSError as error:
        raise OperatorsError(_read_only(folder, 'install', error)) from error
    return f'mmcv now uses the PyTorch operators of mmitpn ({file})'


def uninstall() -> str:
    """Remove the file that :func:`install` wrote, even if mmcv itself was removed in the meantime.

    Returns:
        One sentence about what was done.

    Raises:
        OperatorsError: If the file cannot be removed.
    """
    spec = find_spec('mmcv')
    removed = []
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        file = folder / '_ext.py'
        if not _is_ours(file):
            continue
        try:
            file.unlink()
            for cached in folder.glob('__pycache__/_ext.*.pyc'):
                cached.unlink()
        except OSError as error:
            raise OperatorsError(_read_only(folder, 'uninstall', error)) from error
        removed.append(str(file))
        if find_mmcv() is None:  # mmcv itself was removed earlier
            for empty in (folder / '__pycache__', folder):
                with suppress(OSError):
                    empty.rmdir()
    if not removed:
        return 'nothing to remove: mmcv does not use the PyTorch operators of mmitpn'
    return f'removed {", ".join(removed)}'


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments after ``python -m mmitpn.ops``; None: those of this process.

    Returns:
        Exit status: 0; 2 if ``status`` finds no usable operators, or ``install`` or ``uninstall`` is not possible.
    """
    parser = argparse.ArgumentParser(
        prog='python -m mmitpn.ops', description='The operators of mmcv in PyTorch, for an mmcv without compiled ones.'
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='install|status|uninstall')
    commands.add_parser('install', help='make the installed mmcv use them; never in place of compiled ones')
    commands.add_parser('status', help='which operators mmcv uses: compiled, ours, none, broken, foreign or missing')
    commands.add_parser('uninstall', help='remove what install wrote')
    command = parser.parse_args(arguments).command
    if command == 'status':
        found = status()
        print(f'{found.kind}: {found.message}')  # noqa: T201 - a command line prints
        return 2 if found.kind in ('missing', 'broken', 'none') else 0
    try:
        print(install() if command == 'install' else uninstall())  # noqa: T201
    except OperatorsError as error:
        print(f'error: {error}', file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _command(name: str) -> str:
    return f'{sys.executable} -m mmitpn.ops {name}'


def _is_ours(file: Path) -> bool:
    try:
        with file.open(encoding='utf-8', errors='replace') as lines:
            return lines.readline().startswith(MARKER)
    except OSError:
        return False


def _write(file: Path) -> None:
    """Write the file atomically."""
    with tempfile.NamedTemporaryFile('w', dir=file.parent, prefix='_ext.', delete=False, encoding='utf-8') as part:
        part.write(SOURCE)
    path = Path(part.name)
    try:
        path.chmod(0o644)
        path.replace(file)
    except OSError:
        path.unlink()
        raise


def _read_only(folder: Path, name: str, error: OSError) -> str:
    return (
        f'cannot write to {folder} ({error.strerror or error}); run "sudo {_command(name)}" if it belongs to another '
        'user, else "bash tools/install.sh" in a checkout of mmitpn, which creates its own environment'
    )


def _load_error(extension: Path) -> str | None:
    """Why a compiled extension does not load, the last line of the error, or None if it does; mmcv is not imported."""
    code = (
        'import sys, torch; from importlib.machinery import ExtensionFileLoader as Loader; '
        'from importlib.util import module_from_spec, spec_from_file_location as spec; '
        'loader = Loader("mmcv._ext", sys.argv[1]); '
        'module = module_from_spec(spec("mmcv._ext", sys.argv[1], loader=loader)); loader.exec_module(module)'
    )
    done = subprocess.run([sys.executable, '-c', code, str(extension)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f'the process ended with status {done.returncode}'
