"""Entry of ``python -m mmitpn.ops``."""

import sys

from .install import main

sys.exit(main())
