"""Check COCO datasets and configs: ``mmitpn data check``, as a script (see mmitpn/commands/check_coco.py)."""

from __future__ import annotations

import sys

from mmitpn.commands.check_coco import main

if __name__ == '__main__':
    sys.exit(main())
