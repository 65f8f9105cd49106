"""Entry of ``python -m mmitpn.doctor``."""

import sys

from .command import main

sys.exit(main())
