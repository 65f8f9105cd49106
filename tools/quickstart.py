"""Train, evaluate and draw a small model: ``mmitpn quickstart``, as a script (see mmitpn/commands/quickstart.py)."""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # before anything imports torch

import sys

from mmitpn.commands.quickstart import main

if __name__ == '__main__':
    sys.exit(main())
