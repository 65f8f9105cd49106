"""A function that a process may be started with: it is a command line of ``tools/``."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def start_training(
    root: Path, arguments: list[str], folder: Path, variables: dict[str, str], log: Path, tool: str = 'train.py'
) -> None:
    """Train (or test) as the command line does, in a folder, with a file in the place of the terminal."""
    os.setpgrp()
    os.chdir(folder)
    os.environ.update(variables)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = [f'tools/{tool}', *arguments]
    runpy.run_path(str(root / 'tools' / tool), run_name='__main__')
