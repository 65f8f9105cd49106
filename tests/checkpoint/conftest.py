"""Synthetic checkpoints in the authors' layouts, of any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope='session')
def reference_shapes():
    """A function that returns the names and shapes of one of the authors' networks."""
    cases = json.loads((Path(__file__).parents[1] / 'data' / 'reference' / 'reference.json').read_text())
    return lambda name: cases[name]['shapes']


@pytest.fixture
def small_backbone():
    """A function that builds the FastITPN of the synthetic files."""
    from mmitpn import FastITPN

    def build(**kwargs):
        return FastITPN({'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1}, **kwargs)

    return build


@pytest.fixture
def small_neck():
    """A function that builds the pyramid of the synthetic files."""
    from mmitpn import ITPNPyramid

    def build(**kwargs):
        return ITPNPyramid((16, 32, 64), **{'out_channels': 24, 'num_outs': 4, **kwargs})

    return build


@pytest.fixture
def logged(monkeypatch):
    """The texts of all reports that were logged, with their levels."""
    lines = []

    def record(text, *, level, **_):
        lines.append((level, text))

    monkeypatch.setattr('mmitpn.checkpoint.diagnostics.print_log', record)
    return lines


@pytest.fixture
def half():
    """A function that casts a state dict to fp16."""
    return lambda state: {name: value.to(torch.float16) for name, value in state.items()}
