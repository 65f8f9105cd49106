"""tools/analysis/stage_times.py: fractions of the time of a prediction."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / 'tools/analysis/stage_times.py'
    spec = importlib.util.spec_from_file_location('tool_stage_times', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """A clock that a part advances by its own time."""

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
        self.clock.work(2.0 if self.calls > 1 else 100.0)  # the first run is not timed


@pytest.fixture
def model(monkeypatch, tool):
    clock = Clock()
    monkeypatch.setattr(tool, 'now', lambda _: clock.now)
    return Model(clock)


def test_fractions_of_the_parts_that_are_there(tool, model):
    fractions = tool.stage_fractions(model, model, rounds=2)
    assert fractions == pytest.approx({'backbone': 0.3, 'neck': 0.1, 'decoder': 0.4, 'rest': 0.2})
    assert model.calls == 3


def test_the_model_is_as_before(tool, model):
    tool.stage_fractions(model, model, rounds=1)
    assert 'forward' not in vars(model.backbone)
    model.backbone.forward = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        tool.stage_fractions(model, model, rounds=1)


def test_a_part_that_fails_is_put_back_too(tool, model):
    def fail():
        if model.calls:
            raise RuntimeError('broken')
        model.calls += 1

    with pytest.raises(RuntimeError, match='broken'):
        tool.stage_fractions(model, fail, rounds=1)
    assert 'forward' not in vars(model.backbone)
