"""The study on the path, the settings of a process that the tools make, and a fixed seed."""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # as the tools do, before anything imports torch

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
