"""The command line: ``mmitpn COMMAND ...``, or ``python -m mmitpn COMMAND ...``.

Each command is a module with ``main(argv)``; it is imported when it is called.
"""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # before anything imports torch

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from mmitpn.version import __version__

# Command -> its module, and what it does.
COMMANDS = {
    'predict': ('mmitpn.commands.predict', 'find objects in images, folders, videos'),
    'train': ('mmitpn.commands.train', 'train the model of a config, on its data or your own (--data DIR)'),
    'test': ('mmitpn.commands.test', 'evaluate a checkpoint with the metrics of its config'),
    'export': ('mmitpn.commands.export', 'write a model as one file for ONNX Runtime or OpenVINO'),
    'benchmark': ('mmitpn.commands.benchmark', 'accuracy and speed of models and exported files in one table'),
    'weights': ('mmitpn.commands.weights', 'list and download weights by name'),
    'data': ('mmitpn.commands.data', 'inspect, convert, check and generate datasets'),
    'swap': ('mmitpn.commands.swap', 'replace backbone and neck of an mmdet or mmseg config by Fast-iTPN'),
    'doctor': ('mmitpn.doctor', 'what is installed, what is wrong with it, and how to fix it'),
    'quickstart': ('mmitpn.commands.quickstart', 'train, evaluate and draw a small model in minutes'),
}


def usage() -> str:
    """The text of ``mmitpn --help``."""
    lines = [f'  {name:<12}{text}' for name, (_, text) in COMMANDS.items()]
    return '\n'.join(
        ['usage: mmitpn COMMAND ...', '', *lines, '', 'mmitpn COMMAND --help shows the options of a command.']
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The command and its arguments; None: those of the process.

    Returns:
        Exit status of the command; 2 for an unknown one.
    """
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ['--help']
    if name in ('-h', '--help', 'help'):
        print(usage())
        return 0
    if name in ('-V', '--version'):
        print(f'mmitpn {__version__}')
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f'did you mean {near[0]!r}?' if near else f'allowed: {", ".join(COMMANDS)}'
        sys.stderr.write(f'error: mmitpn has no command {name!r}; {advice}\n')
        return 2
    sys.argv[0] = str(Path(sys.argv[0]).with_name(f'mmitpn {name}'))  # what argparse calls the program
    return import_module(COMMANDS[name][0]).main(rest)


if __name__ == '__main__':
    sys.exit(main())
