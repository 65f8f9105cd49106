from __future__ import annotations

import time

import pytest
from torch import nn

from mmitpn.analysis.stages import stage_shares


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Linear(1, 1)

    def forward(self):
        time.sleep(self.seconds)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.neck = Slow(0.03), Slow(0.01)
        self.panoptic_head = nn.Module()
        self.panoptic_head.predictor = Slow(0.02)

    def forward(self):
        self.backbone()
        self.neck()
        self.panoptic_head.predictor()
        time.sleep(0.02)


def test_shares_of_the_parts_that_are_there():
    model = Model()
    shares = stage_shares(model, model, rounds=2)
    assert list(shares) == ['backbone', 'neck', 'decoder', 'rest']
    assert sum(shares.values()) == pytest.approx(1)
    assert shares['backbone'] > shares['decoder'] > shares['neck'] > 0
    assert 'forward' not in vars(model.backbone)  # put back
