"""The global random generators of a process."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_generators(*numbers: int) -> None:
    """Seed the global generators of Python, numpy and torch from non-negative integers."""
    state = np.random.SeedSequence(numbers).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002 - the frameworks' transforms draw from the global state
    torch.manual_seed(int(state[1]))
