"""Evaluate a checkpoint: ``mmitpn test``, as a script (see mmitpn/commands/test.py)."""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # before anything imports torch

import sys

from mmitpn.commands.test import main

if __name__ == '__main__':
    sys.exit(main())
