"""Token migration, switching token reduction on and off, and compilers and exporters."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmitpn.models import token_reduction
from mmitpn.models.token_reduction import (
    REDUCERS,
    SCORES,
    BaseTokenReducer,
    TokenMigration,
    WindowedTokens,
    WindowPartition,
    register_reducer,
    register_score,
    split_by_redundancy,
    unit_features,
)
from mmitpn.models.token_reduction.migration import nearest

GATHERING = {'window_size': 4, 'num_tokens': 4}
SIZE = (1, 3, 200, 160)


def run(model, size=(200, 333)):
    torch.manual_seed(2)
    with torch.no_grad():
        return model.eval()(torch.randn(2, 3, *size))[-1]


@pytest.mark.parametrize('gathering', [None, {'window_size': 4, 'num_tokens': 4}])
def test_keeping_all_is_the_same_to_the_bit(network, gathering):
    kept = network(token_migration={'keep_ratio': 1.0, 'at': (0, 2)}, token_gathering=gathering)
    assert torch.equal(run(kept), run(network(token_gathering=gathering)))


@pytest.mark.parametrize('grid', [WindowPartition(7, 9), WindowPartition(7, 9, 4), WindowPartition(1, 5, 2)])
@pytest.mark.parametrize('follow', [False, True])
@pytest.mark.parametrize('score', SCORES)
def test_every_token_returns_to_its_position(grid, score, follow):
    x = torch.randn(2, grid.height, grid.width, 6)
    tokens = WindowedTokens.of(x, grid)
    migration = TokenMigration(4, score=score, follow=follow, keep_ratio=0.6, at=(0, 1, 2))
    for _ in migration.at:
        tokens = migration(tokens, nn.Identity())
    assert tokens.x.shape[2] < grid.tokens_per_window
    assert torch.equal(tokens.restore(), x)
    # What the blocks do to those that are left arrives at their positions, and at all others that follow them.
    changed = tokens.update(tokens.x + 1).restore() - x
    kept = grid.merge(
        torch.zeros(2, grid.num_windows, grid.tokens_per_window, 1).scatter(2, tokens.index.unsqueeze(-1), 1.0)
    )
    torch.testing.assert_close(changed, torch.ones_like(changed) if follow else kept.expand_as(changed))


def test_how_many_stay(network):
    seen = []
    model = network(token_migration={'keep_ratio': 0.5, 'at': (1, 3)}).eval()
    model.token_reduction.observer = lambda i, tokens, _: seen.append((i, tokens.x.shape[2]))
    model(torch.randn(1, 3, 96, 80))
    assert seen == [(0, 30), (1, 15), (2, 15), (3, 8)]


def test_one_token_stays_in_the_smallest_image(network):
    assert run(network(token_migration={'keep_ratio': 0.01}), (1, 1)).isfinite().all()


@pytest.mark.parametrize(('depth', 'at'), [(1, 0), (2, 0), (4, 2), (12, 2), (20, 3), (24, 4), (40, 7)])
def test_by_default_from_a_sixth_of_the_way_to_the_last_block(depth, at):
    migration = TokenMigration(depth)
    assert migration.at == (at,)
    assert migration.restore_at == max(depth - 1, 1)


@pytest.mark.parametrize(
    ('whole_blocks', 'at', 'blocks'),
    [
        (0, (1,), [(36, 36), (18, 18), (18, 18), (18, 36)]),  # back after the last attention
        (1, (1,), [(36, 36), (18, 18), (18, 18), (36, 36)]),
        (2, (1,), [(36, 36), (18, 18), (36, 36), (36, 36)]),
        (None, (1,), [(36, 36), (18, 18), (18, 18), (36, 36)]),
        (None, (1, 3), [(36, 36), (18, 18), (18, 18), (9, 36)]),
    ],
)
def test_how_many_tokens_attention_and_feed_forward_network_work_on(network, whole_blocks, at, blocks):
    model = network(token_migration={'at': at, 'whole_blocks': whole_blocks}).eval()
    seen = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda _, x, __: seen.append(x[0].shape[1:-1].numel()))
        block.mlp.register_forward_hook(lambda _, x, __: seen.append(x[0].shape[1:-1].numel()))
    model(torch.randn(1, 3, 96, 96))
    assert seen == [count for block in blocks for count in block]


def test_gradients_reach_dropped_tokens_up_to_where_they_were_dropped():
    tokens = WindowedTokens.of(torch.randn(1, 4, 4, 8, requires_grad=True), WindowPartition(4, 4))
    layer = nn.Linear(8, 8)
    before = tokens.update(layer(tokens.x))
    before.x.retain_grad()
    reduced = TokenMigration(2, at=(0,), follow=False)(before, layer)
    later = nn.Linear(8, 8)
    full = reduced.update(later(reduced.x)).restore()
    dropped = torch.ones(16, dtype=torch.bool)
    dropped[reduced.index[0, 0]] = False
    full.view(16, 8)[dropped].sum().backward()
    assert (before.x.grad[0, 0, dropped] == 1).all()  # straight through: no later layer touched them
    assert later.weight.grad is None or not later.weight.grad.any()


def test_a_dropped_token_follows_the_one_it_was_most_like():
    x = torch.randn(1, 4, 4, 8)
    x[0, 3, 3] = 1.01 * x[0, 0, 0]
    tokens = WindowedTokens.of(x, WindowPartition(4, 4))
    kept = torch.arange(15).view(1, 1, 15)
    dropped = torch.tensor([[[15]]])
    reduced = tokens.select(kept, dropped, nearest_kept=nearest(tokens, unit_features(tokens), kept, dropped))
    assert reduced.weight.tolist() == [[[2.0] + [1.0] * 14]]
    change = torch.randn_like(reduced.x)
    found = reduced.update(reduced.x + change).restore()
    torch.testing.assert_close(found[0, 3, 3], x[0, 3, 3] + change[0, 0, 0])


def test_training_and_testing_may_keep_different_shares(network):
    model = network(token_migration={'keep_ratio': 1.0, 'test_keep_ratio': 0.5})
    plain = network()
    image = torch.randn(1, 3, 128, 128)
    assert torch.equal(model.train()(image)[-1], plain.train()(image)[-1])
    assert not torch.equal(model.eval()(image)[-1], plain.eval()(image)[-1])


def odd_one_out(score):
    x = torch.ones(1, 6, 6, 4) + 0.01 * torch.randn(1, 6, 6, 4)
    x[0, 2, 3] = torch.tensor([1.0, -3.0, 2.0, -4.0])
    return redundancy_of(WindowedTokens.of(x, WindowPartition(6, 6)), score)[0, 0]


def redundancy_of(tokens, score):
    return SCORES[score](unit_features(tokens), tokens.positions(), tokens.grid)


def test_what_stands_out_is_the_least_redundant():
    assert odd_one_out('neighborhood').argmin() == 2 * 6 + 3


def test_bipartite_is_the_similarity_to_the_nearest_of_the_other_half():
    tokens = WindowedTokens.of(torch.randn(1, 3, 3, 5), WindowPartition(3, 3))
    features = unit_features(tokens)[0, 0]
    white, black = [0, 2, 4, 6, 8], [1, 3, 5, 7]
    expected = torch.empty(9)
    for own, other in ((white, black), (black, white)):
        expected[own] = (features[own] @ features[other].T).max(1).values
    torch.testing.assert_close(redundancy_of(tokens, 'bipartite')[0, 0], expected)


@pytest.mark.parametrize('score', SCORES)
def test_what_goes_lies_on_both_halves_and_is_scored_anew(score):
    """Of tokens that are the same in pairs, side by side, one of each pair stays, whatever it looks like."""
    tokens = WindowedTokens.of(torch.randn(1, 6, 3, 8).repeat_interleave(2, 2), WindowPartition(6, 6))
    kept, dropped = split_by_redundancy(tokens, unit_features(tokens), 18, score=score, rounds=2)
    white = (dropped // 6 + dropped % 6) % 2 == 0
    assert white.sum() == 9
    if score == 'bipartite':
        assert (kept // 2).unique().numel() == 18
    both = torch.cat((kept, dropped), -1)
    assert both.sort(-1).values.tolist() == [[list(range(36))]]


def test_neighborhood_is_the_mean_similarity_of_those_that_are_there():
    grid = WindowPartition(3, 4)
    features = nn.functional.normalize(torch.randn(1, 1, 12, 5), dim=-1)
    positions = torch.tensor([[[0, 1, 5, 11]]])
    found = SCORES['neighborhood'](features[:, :, positions[0, 0]], positions, grid)[0, 0]
    one = features[0, 0]
    expected = [(one[0] @ one[1] + one[0] @ one[5]) / 2, (one[1] @ one[0] + one[1] @ one[5]) / 2]
    torch.testing.assert_close(found[:2], torch.stack(expected))
    assert found[3] == 0  # alone


@pytest.mark.parametrize('rounds', [1, 2, 3])
@pytest.mark.parametrize('score', SCORES)
def test_padding_is_dropped_first(score, rounds):
    tokens = WindowedTokens.of(torch.randn(1, 7, 7, 4), WindowPartition(7, 7, 4))
    _, dropped = split_by_redundancy(tokens, unit_features(tokens), 9, score=score, rounds=rounds)
    assert tokens.weight.gather(-1, dropped).sum(-1).tolist() == [[7, 3, 3, 0]]  # of 16, 12, 12 and 9 that are there


def test_padding_that_stays_is_followed_by_none():
    x = -torch.rand(1, 7, 7, 4)
    x[:, 4:, 4:] = torch.eye(4)[:3].repeat(3, 1).view(1, 3, 3, 4)
    tokens = WindowedTokens.of(x, WindowPartition(7, 7, 4))
    kept = torch.tensor([0, 1, 3, 4]).expand(1, 4, 4)  # of the last window's, 3 is padding
    dropped = torch.tensor([2, 6, 8]).expand(1, 4, 3)
    leader = nearest(tokens, unit_features(tokens), kept, dropped)
    assert (tokens.weight.gather(-1, kept).gather(-1, leader) > 0).all()


def test_a_token_that_is_followed_counts_for_those_that_follow(network):
    reduced = TokenMigration(4, at=(0, 1), keep_ratio=0.4)
    tokens = WindowedTokens.of(torch.randn(2, 7, 9, 6), WindowPartition(7, 9, 4))
    for _ in reduced.at:
        tokens = reduced(tokens, nn.Identity())
    assert tokens.weight.sum((1, 2)).tolist() == [63, 63]


def test_own_scores_can_be_registered(network):
    @register_score('first')
    def first(features, positions, grid):
        return positions.float()

    try:
        assert run(network(token_migration={'score': 'first'})).isfinite().all()
        with pytest.raises(ValueError, match="'first' is registered already"):
            register_score('first')(first)
    finally:
        del SCORES['first']


def test_own_methods_can_be_registered(network):
    @register_reducer
    class FirstTokens(BaseTokenReducer):
        def reduce(self, tokens, block, keep):
            order = torch.arange(tokens.x.shape[2]).expand(tokens.x.shape[:3])
            return tokens.select(order[..., :keep], order[..., keep:])

    try:
        assert run(network(token_migration={'type': 'FirstTokens'})).isfinite().all()
        with pytest.raises(ValueError, match="'FirstTokens' is registered already"):
            register_reducer(FirstTokens)
    finally:
        del REDUCERS['FirstTokens']


@pytest.mark.parametrize(
    ('migration', 'message'),
    [
        ({'keep_ratio': 0}, 'keep_ratio is 0; allowed: more than 0, up to 1'),
        ({'keep_ratio': 1.5}, r'keep_ratio is 1\.5; allowed'),
        ({'keep_ratio': float('nan')}, 'keep_ratio is nan; allowed'),
        ({'test_keep_ratio': 2}, 'test_keep_ratio is 2; allowed'),
        ({'at': (4,)}, r'at is \(4,\); allowed: blocks of the main stage, 0 to 3'),
        ({'at': (3, 1)}, 'ascending and each once'),
        ({'whole_blocks': 4}, 'whole_blocks is 4; allowed: 0 to 3 of the 4 blocks'),
        ({'whole_blocks': -1}, 'whole_blocks is -1; allowed'),
        ({'at': (1, 2), 'whole_blocks': 2}, r'at is \(1, 2\), but all tokens are back before block 2'),
        ({'rounds': 0}, 'rounds is 0; allowed: integers from 1'),
        ({'score': 'x'}, "unknown score 'x'; allowed: 'neighborhood', 'bipartite'"),
        ({'type': 'X'}, "token_migration has the type 'X'; allowed: 'TokenMigration'"),
    ],
)
def test_bad_settings_are_explained(network, migration, message):
    with pytest.raises(ValueError, match=message):
        network(token_migration=migration)


@pytest.mark.parametrize(('old', 'new'), [('TokenReducer', 'BaseTokenReducer'), ('take', 'gather_tokens')])
def test_old_names_warn(old, new):
    with pytest.warns(DeprecationWarning, match=f'{old} is {new} now'):
        assert getattr(token_reduction, old) is getattr(token_reduction, new)


def features(model):
    torch.manual_seed(2)
    with torch.no_grad():
        return model.eval()(torch.randn(2, 3, 200, 160))[-1]


def test_switched_on_is_as_if_built_so(network):
    settings = {'token_gathering': GATHERING, 'token_migration': {'keep_ratio': 0.6}}
    model = network()
    plain = features(model)
    model.set_token_reduction(**settings)
    assert torch.equal(features(model), features(network(**settings)))
    model.set_token_reduction()
    assert torch.equal(features(model), plain)


def test_the_mode_and_frozen_parts_stay_as_they_are(network):
    model = network(frozen_stages=3).eval()
    model.set_token_reduction(
        token_migration={'keep_ratio': 1.0, 'test_keep_ratio': 0.5}, token_gathering={'learned': True}
    )
    assert model.token_reduction.migration.ratio == 0.5
    assert not any(p.requires_grad for p in model.parameters())
    assert model.train().token_reduction.migration.ratio == 1.0


def test_learned_offsets_come_stay_and_go(network):
    model = network(token_gathering={**GATHERING, 'learned': True})
    names = set(model.state_dict())
    with torch.no_grad():
        model.blocks[0].attn.gathering_offset.fill_(0.5)
    model.set_token_reduction(token_gathering={**GATHERING, 'learned': True}, token_migration={})
    assert (model.blocks[0].attn.gathering_offset == 0.5).all()
    model.set_token_reduction(token_gathering=GATHERING)
    assert names - set(model.state_dict()) == {f'blocks.{i}.attn.gathering_offset' for i in range(4)}


def test_bad_settings_leave_the_network_as_it_was(network):
    model = network(token_gathering=GATHERING)
    before = features(model)
    with pytest.raises(ValueError, match='keep_ratio is 2'):
        model.set_token_reduction(token_migration={'keep_ratio': 2})
    assert torch.equal(features(model), before)


@pytest.fixture
def reduced(network):
    return lambda **more: network(token_gathering=GATHERING, token_migration={}, **more).eval()


def test_exported_gives_the_same_output(reduced):
    model, x = reduced(), torch.randn(SIZE)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        assert_close(exported(x + 0.1), model(x + 0.1))


@pytest.mark.slow
@pytest.mark.usefixtures('inductor')
def test_compiled_gives_the_same_output(reduced):
    few = {'depths': (0, 0, 2), 'embed_dim': 48, 'num_heads': 3}
    model = reduced(arch=few)
    compiled = torch.compile(reduced(arch=few), dynamic=False, fullgraph=True)
    x = torch.randn(SIZE)
    with torch.no_grad():
        assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings('ignore')
def test_onnx_gives_the_same_output(reduced):
    pytest.importorskip('onnx', reason='the onnx package writes the file')
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime runs the file')
    model, x = reduced(), torch.randn(SIZE)
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, opset_version=17)
    session = runtime.InferenceSession(file.getvalue())
    found = session.run(None, {session.get_inputs()[0].name: (x + 0.1).numpy()})
    with torch.no_grad():
        for ours, theirs in zip(model(x + 0.1), found, strict=True):
            assert_close(torch.from_numpy(theirs), ours, rtol=1e-3, atol=1e-4)
