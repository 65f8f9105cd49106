"""Train the model of a config: ``mmitpn train``, as a script (see mmitpn/commands/train.py)."""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # before anything imports torch

import sys

from mmitpn.commands.train import main

if __name__ == '__main__':
    sys.exit(main())
