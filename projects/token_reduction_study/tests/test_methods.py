"""The methods that migration is compared with, behind the same interface."""

from __future__ import annotations

import pytest
import torch

from mmitpn.models.layers import Attention, SwiGLU, TransformerBlock
from mmitpn.models.token_reduction.reducers import REDUCERS
from mmitpn.models.token_reduction.tokens import TokenSet
from mmitpn.models.token_reduction.windows import WindowGrid

NEIGHBOURS = ['TokenMerging', 'TokenPropagation', 'SemanticTokens']


def block() -> TransformerBlock:
    return TransformerBlock(12, Attention(12, 2), SwiGLU(12, 24))


@pytest.mark.parametrize('kind', NEIGHBOURS)
@pytest.mark.parametrize('gathering', [None, {'window_size': 4, 'num_tokens': 4}])
@pytest.mark.parametrize('keep_ratio', [0.5, 0.2])
def test_gives_the_full_grid_and_learns(network, kind, gathering, keep_ratio):
    model = network(token_migration={'type': kind, 'keep_ratio': keep_ratio, 'at': (1,)}, token_gathering=gathering)
    counts = []
    model.token_reduction.observer = lambda _, tokens, __: counts.append(tokens.x.shape[2])
    out = model(torch.randn(2, 3, 200, 333))[-1]
    assert out.shape == (2, 48, 13, 21)
    assert counts[1] <= round(keep_ratio * counts[0])
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('kind', NEIGHBOURS)
def test_keeping_all_is_the_same_to_the_bit(network, kind):
    image = torch.randn(1, 3, 200, 333)
    model = network(token_migration={'type': kind, 'keep_ratio': 1.0})
    assert torch.equal(model.eval()(image)[-1], network().eval()(image)[-1])


def test_tokens_that_are_the_same_merge_without_a_loss():
    grid = WindowGrid(4, 4)
    x = torch.randn(1, 4, 2, 12).repeat_interleave(2, 2)  # every token twice, side by side
    merging = REDUCERS['TokenMerging'](4, at=(0,), keep_ratio=0.5)
    tokens = merging(TokenSet.of(x, grid), block())
    assert tokens.x.shape[2] == 8
    assert tokens.weight.tolist() == [[[2.0] * 8]]
    torch.testing.assert_close(tokens.restore(), x)


def test_merged_tokens_are_means_and_nothing_is_lost():
    grid = WindowGrid.fit(5, 7, 4)
    x = torch.randn(2, 5, 7, 12)
    merging = REDUCERS['TokenMerging'](4, at=(0, 1), keep_ratio=0.4)
    tokens = TokenSet.of(x, grid)
    for _ in merging.at:
        tokens = merging(tokens, block())
    assert tokens.weight.sum() == 2 * 35  # padding weighs nothing
    torch.testing.assert_close(
        (tokens.x * tokens.weight.unsqueeze(-1)).sum((1, 2)), x.sum((1, 2)), rtol=1e-4, atol=1e-4
    )


def test_what_is_dropped_is_handed_on_in_equal_shares():
    x = torch.randn(1, 4, 4, 12)
    propagation = REDUCERS['TokenPropagation'](4, at=(0,), alpha=0.5, keep_ratio=0.5)
    tokens = propagation(TokenSet.of(x, WindowGrid(4, 4)), block())
    kept = tokens.place[0, 0]
    dropped = [i for i in range(16) if i not in kept.tolist()]
    rows = x.view(16, 12)
    torch.testing.assert_close(
        tokens.x.sum((0, 1, 2)), rows[kept].sum(0) + 0.5 * rows[dropped].sum(0), rtol=1e-4, atol=1e-4
    )
    assert tokens.weight.sum() == pytest.approx(8 + 0.5 * 8)
    torch.testing.assert_close(tokens.restore().view(16, 12)[dropped], rows[dropped])


def test_semantic_tokens_stand_for_all_of_the_grid():
    grid = WindowGrid.fit(7, 9, 4)
    reducer = REDUCERS['SemanticTokens'](4, at=(0,), keep_ratio=0.25)
    tokens = reducer(TokenSet.of(torch.randn(1, 7, 9, 12), grid), block())
    assert tokens.weight.sum() == 63
    assert tokens.restore().shape == (1, 7, 9, 12)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'type': 'SemanticTokens', 'at': (1, 2)}, 'semantic tokens are made once: give one block'),
        ({'type': 'TokenPropagation', 'alpha': 2}, 'alpha is 2; allowed: 0 to 1'),
        ({'type': 'TokenPropagation', 'neighbours': 0}, 'neighbours is 0; allowed: whole numbers from 1'),
    ],
)
def test_bad_settings_are_explained(network, settings, message):
    with pytest.raises(ValueError, match=message):
        network(token_migration=settings)
