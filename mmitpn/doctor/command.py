"""The command line of the doctor.

    python -m mmitpn.doctor                                     the installation
    python -m mmitpn.doctor --config CONFIG [--cfg-options ...]   and the data that a config names

Ends with status 1 if something that this project needs does not work, after looking at everything, and 2 for a mistake
on the command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from .cuda import check_gpu, check_operators
from .data import check_data
from .environment import (
    check_hosts,
    check_known_combinations,
    check_libraries,
    check_project,
    check_python,
    check_stack,
    find_stack,
)
from .found import Diagnosis

CHECKS: tuple[Callable[[Diagnosis], None], ...] = (
    check_python,
    check_libraries,
    check_stack,
    check_hosts,
    check_operators,
    check_gpu,
    check_known_combinations,
    check_project,
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with status 2."""
        sys.stderr.write(f'error: {message} (--help shows what is allowed)\n')
        sys.exit(2)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a mistake ends the program with status 2."""
    parser = Parser(
        prog='python -m mmitpn.doctor', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--config', metavar='CONFIG', help='also look for the data of this config, or of HOST::NAME')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='override settings of CONFIG')
    args = parser.parse_args(argv)
    wrong = [option for option in args.cfg_options if '=' not in option]
    if wrong:
        parser.error(f'--cfg-options {wrong[0]!r} must be KEY=VALUE')
    if args.cfg_options and not args.config:
        parser.error('--cfg-options belongs to --config CONFIG')
    if args.config and '::' not in args.config and not Path(args.config).is_file():
        parser.error(f'no config file {args.config!r}; give the path of one, or HOST::NAME')
    return args


def diagnose() -> Diagnosis:
    """Look at the whole installation, whatever is broken on the way.

    Returns:
        The rows, problems and remarks found.
    """
    found = Diagnosis(stack=find_stack())
    for check in CHECKS:
        check(found)
    return found


def report(found: Diagnosis) -> None:
    """Print the table, the problems, and what mends them."""
    width = max(len(version_) for _, version_, _ in found.rows) + 2
    for name, version_, note in found.rows:
        print(f'{name:<13}{version_:<{width}}{note}'.rstrip())
    for kind, those in (('note', found.remarks), ('problem', found.problems)):
        for one in those:
            print(f'{kind}: {one.says}\n  mend: {one.mend}')
    print(f'{len(found.problems)} problem(s)' if found.problems else 'everything that mmitpn needs works')


def main(argv: Sequence[str] | None = None) -> int:
    """Look at the installation and, if one is named, at the data of a config.

    Args:
        argv: Arguments of the command line.

    Returns:
        0 if everything works, 1 if not, 2 for a config that cannot be read.
    """
    args = parse_args(argv)
    found = diagnose()
    status = 0
    if args.config:
        try:
            check_data(found, args.config, args.cfg_options)
        except Exception as error:  # noqa: BLE001  a config is a program: it raises anything, and the table is wanted
            sys.stderr.write(f'error: {args.config}: {" ".join(str(error).split()) or type(error).__name__}\n')
            status = 2
    report(found)
    return status or (1 if found.problems else 0)
