"""The survey on the path, and the settings of a process that the tools make."""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # as the tools do, before anything imports torch

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
