from __future__ import annotations

import pytest
import torch

from mmitpn.models.backbones import FastITPN

SMALL = {'depths': (1, 1, 4), 'embed_dim': 48, 'num_heads': 3}


@pytest.fixture
def network():
    """Make the same small backbone with any token reduction."""

    def make(arch=SMALL, **kwargs) -> FastITPN:
        torch.manual_seed(1)
        return FastITPN(arch, weight_init='xavier', **kwargs)

    return make
