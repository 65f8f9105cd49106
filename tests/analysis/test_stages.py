from __future__ import annotations

import pytest
from torch import nn

from mmitpn.analysis import stages


class Clock:
    """A clock that goes on only where a part says that it worked."""

    def __init__(self):
        self.now = 0.0

    def work(self, seconds):
        self.now += seconds


class Part(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.weight = nn.Linear(1, 1)

    def forward(self):
        self.clock.work(self.seconds)


class Model(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.backbone, self.neck = Part(clock, 3.0), Part(clock, 1.0)
        self.panoptic_head = nn.Module()
        self.panoptic_head.predictor = Part(clock, 2.0)
        self.calls = 0

    def forward(self):
        self.calls += 1
        self.backbone()
        self.neck()
        self.panoptic_head.predictor()
        self.panoptic_head.predictor()
        self.clock.work(2.0 if self.calls > 1 else 100.0)  # the first run is not counted


@pytest.fixture
def model(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stages, '_now', lambda _: clock.now)
    return Model(clock)


def test_fractions_of_the_parts_that_are_there(model):
    fractions = stages.stage_shares(model, model, rounds=2)
    assert fractions == pytest.approx({'backbone': 0.3, 'neck': 0.1, 'decoder': 0.4, 'rest': 0.2})
    assert model.calls == 3


def test_the_model_is_as_before(model):
    stages.stage_shares(model, model, rounds=1)
    assert 'forward' not in vars(model.backbone)
    model.backbone.forward = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stages.stage_shares(model, model, rounds=1)


def test_a_part_that_fails_is_put_back_too(model):
    def fail():
        if model.calls:
            raise RuntimeError('broken')
        model.calls += 1

    with pytest.raises(RuntimeError, match='broken'):
        stages.stage_shares(model, fail, rounds=1)
    assert 'forward' not in vars(model.backbone)
