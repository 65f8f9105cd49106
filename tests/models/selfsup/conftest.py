from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmitpn.models.backbones import ITPN, FastITPN
from mmitpn.models.necks import ITPNPyramid
from mmitpn.models.selfsup import ITPNPretrain

NANO = {'depths': (1, 1, 4), 'embed_dim': 64, 'num_heads': 2}
SIDE = 64  # 4x4 patches


@pytest.fixture
def build():
    """A small network of a recipe."""

    def make(form='fast', *, backbone=None, neck=None, **settings) -> ITPNPretrain:
        torch.manual_seed(0)
        fast = form not in ('clip', 'pixel')
        options = {'img_size': SIDE, **(backbone or {})}
        if fast:
            network = FastITPN(NANO, **options)
        else:
            network = ITPN(NANO, **{**({'relative_position': 'table'} if form == 'clip' else {}), **options})
        pyramid = ITPNPyramid(
            (16, 32, 64), **{'out_channels': 32, 'num_outs': 3, 'kind': 'fast' if fast else 'linear', **(neck or {})}
        )
        if form in ('fast', 'clip'):
            settings.setdefault('teacher', 'random')
        return ITPNPretrain(network, pyramid, form=form, **settings)

    return make


@pytest.fixture
def images():
    return torch.randn(2, 3, SIDE, SIDE)
