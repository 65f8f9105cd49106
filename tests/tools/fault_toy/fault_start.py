"""A function that a process may be started with: it is ``tools/train.py``."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def start_training(root: Path, arguments: list[str], folder: Path, variables: dict[str, str], log: Path) -> None:
    """Train as the command line does, in a folder, with a file in the place of the terminal."""
    os.setpgrp()
    os.chdir(folder)
    os.environ.update(variables)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ['tools/train.py', *arguments]
    runpy.run_path(str(root / 'tools/train.py'), run_name='__main__')
