"""The share of the time that handling tokens takes."""

from __future__ import annotations

import time

import pytest
import torch

from mmitpn.analysis.bookkeeping import bookkeeping_share
from mmitpn.models.backbones import FastITPN
from mmitpn.models.token_reduction import TokenReducer, TokenSet, WindowGrid

SMALL = {'depths': (1, 1, 3), 'embed_dim': 48, 'num_heads': 3}


def share_of(**reduction) -> float:
    model = FastITPN(SMALL, **reduction).eval()
    image = torch.randn(1, 3, 136, 200)
    with torch.inference_mode():
        return bookkeeping_share(lambda: model(image))


def test_a_network_without_has_none():
    assert share_of() == 0


@pytest.mark.parametrize(
    'reduction',
    [{'token_gathering': {'window_size': 4}}, {'token_migration': {}}, {'token_migration': {'type': 'TokenMerging'}}],
)
def test_handling_is_a_part_of_the_whole(reduction):
    assert 0.01 < share_of(**reduction) < 0.9


def test_what_runs_inside_is_counted_once_and_nothing_stays_behind():
    tokens = TokenSet.of(torch.randn(1, 4, 4, 8), WindowGrid.fit(4, 4, 2))

    class Slow(TokenReducer):
        def reduce(self, tokens, block, keep):
            time.sleep(0.05)
            return tokens.update(tokens.grid.partition(tokens.grid.merge(tokens.x)))

    before = {name: vars(WindowGrid)[name] for name in ('partition', 'merge')}
    slow = Slow(2, at=(0,))

    def call() -> None:
        slow(tokens, None)
        time.sleep(0.05)

    assert 0.4 < bookkeeping_share(call) < 0.6
    assert {name: vars(WindowGrid)[name] for name in before} == before
