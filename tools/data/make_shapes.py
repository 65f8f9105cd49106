"""Generate the dataset of the quick start: ``mmitpn data shapes``, as a script (see mmitpn/commands/make_shapes.py)."""

from __future__ import annotations

import sys

from mmitpn.commands.make_shapes import main

if __name__ == '__main__':
    sys.exit(main())
