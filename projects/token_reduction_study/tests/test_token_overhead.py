"""The fraction of the time that handling tokens takes."""

from __future__ import annotations

import time

import pytest
import torch
from token_study.worker import token_overhead

from mmitpn.models.backbones import FastITPN
from mmitpn.models.token_reduction import BaseTokenReducer, WindowedTokens, WindowPartition

SMALL = {'depths': (1, 1, 3), 'embed_dim': 48, 'num_heads': 3}


def overhead_of(**reduction) -> float:
    model = FastITPN(SMALL, **reduction).eval()
    image = torch.randn(1, 3, 136, 200)
    with torch.inference_mode():
        return token_overhead(lambda: model(image))


def test_a_network_without_token_reduction_has_none():
    assert overhead_of() == 0


@pytest.mark.parametrize(
    'reduction',
    [{'token_gathering': {'window_size': 4}}, {'token_migration': {}}, {'token_migration': {'type': 'TokenMerging'}}],
)
def test_handling_is_a_part_of_the_whole(reduction):
    assert 0.01 < overhead_of(**reduction) < 0.9


def test_nested_calls_are_counted_once_and_the_classes_are_restored(monkeypatch):
    tokens, now = WindowedTokens.of(torch.randn(1, 4, 4, 8), WindowPartition(4, 4, 2)), [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])

    class Slow(BaseTokenReducer):
        def reduce(self, tokens, block, keep):
            now[0] += 1
            return tokens.update(tokens.grid.partition(tokens.grid.merge(tokens.x)))

    before = {name: vars(WindowPartition)[name] for name in ('partition', 'merge')}
    slow = Slow(2, at=(0,))

    def call() -> None:
        slow(tokens, None)
        now[0] += 3

    assert token_overhead(call) == 0.25
    assert {name: vars(WindowPartition)[name] for name in before} == before
