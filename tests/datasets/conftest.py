"""A small generated dataset that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmitpn.datasets import generate_shapes


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory) -> Path:
    """A generated dataset of a few images. Read only."""
    return generate_shapes(tmp_path_factory.mktemp('shapes'), 24, 9, seed=3, size=(96, 128))
