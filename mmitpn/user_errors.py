"""A user's mistake becomes one line and an exit status, with and without the frameworks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from mmitpn.ops.install import explain_import

# What a mistake in a config, a path or an option raises, here and (KeyError, AssertionError) in the frameworks.
USER_ERRORS = (ValueError, TypeError, KeyError, AssertionError, OSError, ImportError, SyntaxError)


def describe_error(error: Exception) -> str:
    """One line about a user's mistake."""
    advice = explain_import(error) if isinstance(error, ImportError) else None
    if advice is not None:
        return advice
    if isinstance(error, FileNotFoundError) and error.filename is not None:  # the system's own has no sentence
        return (
            f'not found: {error.filename} (seen from {Path.cwd()}); the config, or a file it reads, names this path:'
            ' correct the setting (data_root, ann_file, data_prefix ...), or put the data there'
        )
    text = ' '.join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    name = '' if isinstance(error, (ValueError, FileNotFoundError)) else f'{type(error).__name__}: '
    return f'{name}{text or type(error).__name__}'


def run_without_framework(command: Callable[[argparse.Namespace, list], None], args: argparse.Namespace) -> int:
    """Run a command that needs no mmengine, as :func:`mmitpn.engine.cli.run_command` runs the others.

    Args:
        command: Takes the arguments and a list, which stays empty.
        args: Parsed arguments.

    Returns:
        Exit status: 0, or 2 after a mistake in a path or an option; it propagates with ``--debug``.
    """
    try:
        command(args, [])
    except USER_ERRORS as error:
        if args.debug:
            raise
        sys.stderr.write(f'error: {describe_error(error)} (--debug shows where)\n')
        return 2
    return 0
