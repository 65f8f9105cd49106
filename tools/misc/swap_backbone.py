"""Replace backbone and neck of a config: ``mmitpn swap``, as a script (see mmitpn/commands/swap.py)."""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # before anything imports torch

import sys

from mmitpn.commands.swap import main

if __name__ == '__main__':
    sys.exit(main())
