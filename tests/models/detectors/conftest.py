"""Makes this folder's helpers importable, here and in the processes its tests start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
