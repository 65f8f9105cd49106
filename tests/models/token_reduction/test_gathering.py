"""Windows of tokens, and attention within windows with gathered ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mmitpn import FastITPN, LayerDecayOptimWrapperConstructor
from mmitpn.checkpoint import load_pretrained
from mmitpn.models.token_reduction import (
    POOLS,
    GatheringAttention,
    ProportionalAttention,
    QueryGatheringAttention,
    WindowedTokens,
    WindowPartition,
)
from mmitpn.utils import IMAGENET_MEAN, IMAGENET_STD

SIZES = [(256, 256), (200, 333), (33, 500)]
WINDOWS = {'window_size': 4, 'num_tokens': 4}


def run(model, size, batch=2):
    torch.manual_seed(2)
    with torch.no_grad():
        return model.eval()(torch.randn(batch, 3, *size))[-1]


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('size', SIZES)
def test_as_many_gathering_tokens_as_tokens_are_global_attention(network, size, pool):
    full = network(token_gathering={'window_size': 4, 'num_tokens': 16, 'pool': pool})
    assert_close(run(full, size), run(network(), size), rtol=1e-4, atol=1e-5)


def test_where_the_grid_is_one_window_nothing_changes(network):
    one = network(token_gathering={'window_size': 16, 'num_tokens': 0})
    assert torch.equal(run(one, (256, 256)), run(network(), (256, 256)))


def test_all_blocks_global_is_global_also_where_windows_are_padded(network):
    model = network(token_gathering={**WINDOWS, 'global_blocks': (0, 1, 2, 3)})
    assert_close(run(model, (200, 333)), run(network(), (200, 333)), rtol=1e-4, atol=1e-5)


def test_blocks_are_counted_from_the_last_one_too(network):
    model = network(token_gathering={**WINDOWS, 'global_blocks': (0, -1)})
    assert model.token_reduction.gathering.global_blocks == (0, 3)


def test_content_crosses_windows_by_gathering_tokens_only(network):
    def moved(**gathering) -> float:
        model = network(token_gathering={'window_size': 4, **gathering}).eval()
        image = torch.randn(1, 3, 128, 128)
        other = image.clone()
        other[:, :, :64, :64] += 1  # the first window
        with torch.no_grad():
            return float((model(image)[-1] - model(other)[-1])[:, :, :, 4:].abs().max())

    assert moved(num_tokens=0) == 0
    assert moved(num_tokens=1) > 1e-4


def attend(cls, x, grid, *more, heads=2):
    tokens = WindowedTokens.of(x, grid)
    qkv = tokens.x.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)
    return tokens, cls(tokens, *more), qkv


@pytest.mark.parametrize(
    ('cls', 'more'),
    [
        (GatheringAttention, (4,)),
        (GatheringAttention, (0,)),
        (QueryGatheringAttention, (4,)),
        (QueryGatheringAttention, (1,)),
        (ProportionalAttention, ()),
    ],
)
def test_padding_is_never_attended_to(cls, more):
    grid = WindowPartition(7, 9, 4)
    tokens, rule, x = attend(cls, torch.randn(2, 7, 9, 16), grid, *more)
    real = tokens.weight.flatten() > 0
    spoilt = torch.where(real[:, None], x, torch.full_like(x, 1e4))
    assert_close(rule(x, x, x)[:, :, real], rule(x, spoilt, spoilt)[:, :, real])


@pytest.mark.parametrize('cls', POOLS.values())
def test_a_gathering_token_counts_as_its_cell(cls):
    """Where all keys of other windows are the same, their gathering tokens are as good as all of them."""
    grid = WindowPartition(8, 8, 4)
    x = torch.randn(1, 8, 8, 16)
    x[:, :, 4:] = x[:, :1, 4:5]
    x[:, 4:] = x[:, :1, 4:5]
    _, gathered, qkv = attend(cls, x, grid, 1)
    everything = ProportionalAttention(WindowedTokens.of(x, grid))
    assert_close(gathered(qkv, qkv, qkv)[:, :, :16], everything(qkv, qkv, qkv)[:, :, :16], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('number', [1, 4])
@pytest.mark.parametrize('size', [(8, 8), (7, 9)])
@pytest.mark.parametrize('kept', [False, True])
def test_pooled_by_the_query_it_is_exact_for_windows_of_one_query(size, number, kept):
    """Where all queries of a window are the same, their attention to the far cells is that to all of their tokens."""
    grid = WindowPartition(*size, 4)
    tokens = WindowedTokens.of(torch.randn(2, *size, 16), grid)
    if kept:
        order = torch.rand(2, grid.num_windows, grid.tokens_per_window).argsort(-1)
        real_first = torch.sort((tokens.weights().gather(-1, order) == 0).int(), dim=-1, stable=True).indices
        order = order.gather(-1, real_first)
        kept_index, dropped = order[..., :6], order[..., 6:]
        tokens = tokens.select(kept_index, dropped, nearest_kept=torch.zeros_like(dropped))
    count = tokens.x.shape[2]
    key, value = torch.randn(2, 2, 2, grid.num_windows * count, 8).unbind(0)
    query = 3 * torch.randn(2, 2, grid.num_windows, 1, 8).expand(-1, -1, -1, count, -1).flatten(2, 3)
    found = QueryGatheringAttention(tokens, number)(query, key, value)
    assert_close(found, ProportionalAttention(tokens)(query, key, value), rtol=1e-3, atol=1e-4)
    assert (found - GatheringAttention(tokens, number)(query, key, value)).abs().max() > 0.1


def test_pooled_by_the_query_it_is_closer_to_global_attention():
    from mmitpn.datasets.shapes.drawing import draw_image

    image = draw_image(np.random.default_rng(3), 256, 256).image
    image = ((torch.from_numpy(image) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).float()
    model = FastITPN('nano', img_size=256).eval()
    load_pretrained(model, 'configs/quickstart/fast-itpn-nano_shapes-seg.pth')

    def stride_16(**gathering):
        model.set_token_reduction(token_gathering=gathering or None)
        with torch.no_grad():
            return model(image.permute(2, 0, 1)[None])[-1]

    exact = stride_16()
    by_mean, by_query = (
        float((stride_16(window_size=4, num_tokens=4, pool=pool) - exact).norm()) for pool in ('mean', 'query')
    )
    assert by_query < 0.7 * by_mean


def test_the_attention_that_is_drawn_is_that_of_the_forward_pass():
    grid = WindowPartition(7, 9, 4)
    _, rule, x = attend(QueryGatheringAttention, torch.randn(2, 7, 9, 16), grid, 4, heads=1)
    weights = rule.attention_weights(x, x)
    count = grid.tokens_per_window
    assert weights.shape == (2, grid.num_windows, count, count + (grid.num_windows - 1) * 4)
    assert_close(weights.sum(-1), torch.ones(2, grid.num_windows, count))
    windowed = x.view(2, 1, grid.num_windows, count, 16)
    far = rule._gather(windowed, windowed, windowed, None)[1]
    out = weights @ torch.cat((windowed, far), 3)[:, 0]
    assert_close(out.flatten(1, 2), rule(x, x, x)[:, 0], rtol=1e-4, atol=1e-5)


def test_no_parameters_unless_learned(network):
    assert network(token_gathering=WINDOWS).state_dict().keys() == network().state_dict().keys()


@pytest.mark.parametrize('pool', POOLS)
def test_learned_offsets_start_at_nothing_and_learn(network, pool):
    settings = {**WINDOWS, 'pool': pool, 'global_blocks': (3,)}
    learned = network(token_gathering={**settings, 'learned': True})
    assert_close(run(learned, (256, 256)), run(network(token_gathering=settings), (256, 256)))
    learned.train()(torch.randn(1, 3, 128, 192))[-1].square().mean().backward()
    offsets = [block.attn.gathering_offset for block in learned.blocks]
    assert [None if one is None else bool(one.grad.abs().max() > 0) for one in offsets] == [True] * 3 + [None]
    assert learned.get_layer_depth('blocks.1.attn.gathering_offset') == learned.get_layer_depth('blocks.1.norm1.weight')


def test_offsets_are_in_a_group_of_the_layer_decay(network):
    from torch import nn

    model = nn.Module()
    model.backbone = network(token_gathering={**WINDOWS, 'learned': True})
    wrapper = {'type': 'OptimWrapper', 'optimizer': {'type': 'AdamW', 'lr': 1.0}}
    optimizer = LayerDecayOptimWrapperConstructor(wrapper, {'decay_rate': 0.5})(model).optimizer
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    attention = model.backbone.blocks[0].attn
    assert rates[id(attention.gathering_offset)] == rates[id(attention.qkv.weight)]


def test_a_file_without_offsets_loads_and_says_so(network):
    model = network(token_gathering={**WINDOWS, 'learned': True})
    report = load_pretrained(model, network().state_dict())
    assert report.part('main (fresh)').missing == [f'blocks.{i}.attn.gathering_offset' for i in range(4)]
    assert any('offsets of the gathering tokens start at 0' in note for note in report.notes)


@pytest.mark.parametrize('pool', POOLS)
def test_recomputing_gives_the_same_gradients(network, pool):
    windows = {**WINDOWS, 'pool': pool, 'learned': True}
    grads = []
    image = torch.randn(2, 3, 130, 97)
    for with_cp in (False, True):
        model = network(token_gathering=windows, token_migration={'at': (1, 3)}, with_cp=with_cp)
        sum(x.square().mean() for x in model(image)).backward()
        grads.append([p.grad for p in model.parameters()])
    for kept, again in zip(*grads, strict=True):
        assert_close(kept, again)


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_stays_finite(network, dtype, pool):
    model = network(token_gathering={**WINDOWS, 'pool': pool}, token_migration={})
    with torch.autocast('cpu', dtype=dtype):
        out = model(torch.randn(1, 3, 200, 333))[-1]
    assert out.isfinite().all()
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ('gathering', 'message'),
    [
        ({'window_size': 0}, 'window_size is 0; allowed: integers from 1, in tokens'),
        ({'num_tokens': 257}, 'num_tokens is 257; allowed: 0 to 256, what a window of 16x16 tokens holds'),
        ({'num_tokens': -1}, 'num_tokens is -1'),
        ({'pool': 'max'}, "pool is 'max'; allowed: 'mean', 'query'"),
        ({'global_blocks': (4,)}, r'global_blocks is \(4,\); allowed: blocks of the main stage, 0 to 3'),
        ({'global_blocks': (2, 1)}, 'ascending and each once'),
    ],
)
def test_bad_settings_are_explained(network, gathering, message):
    with pytest.raises(ValueError, match=message):
        network(token_gathering=gathering)


def test_settings_must_be_a_dict(network):
    with pytest.raises(TypeError, match='take a dict of settings, not True'):
        network(token_gathering=True)


@pytest.mark.parametrize(('grid', 'side'), [((64, 64), 16), ((50, 84), 16), ((7, 3), 16), ((1, 33), 4), ((9, 9), 2)])
def test_a_cut_grid_is_put_together_again(grid, side):
    windows = WindowPartition(*grid, side)
    x = torch.randn(2, *grid, 5)
    parts = windows.partition(x)
    assert parts.shape == (2, windows.num_windows, windows.tokens_per_window, 5)
    assert max(windows.window_h, windows.window_w) <= side
    assert torch.equal(windows.merge(parts), x)


def test_windows_are_equal_and_little_is_padded():
    windows = WindowPartition(50, 84, 16)  # 800x1333
    assert (windows.rows, windows.columns, windows.window_h, windows.window_w) == (4, 6, 13, 14)
    assert windows.padding == (2, 0)
    weight = windows.weight(torch.device('cpu'))
    assert weight.shape == (1, 24, 13 * 14)
    assert weight.sum() == 50 * 84
    assert WindowPartition(64, 64, 16).weight(torch.device('cpu')) is None


def test_neighbours_in_a_window_are_neighbours_in_the_grid():
    windows = WindowPartition(4, 6, 3)
    x = torch.arange(24).view(1, 4, 6, 1)
    assert windows.partition(x)[0, 1, :, 0].tolist() == [3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize(('number', 'cut'), [(4, (2, 2)), (1, (1, 1)), (8, (2, 4)), (3, (1, 3)), (256, (16, 16))])
def test_cells_are_as_square_as_can_be(number, cut):
    windows = WindowPartition(16, 16)
    assert windows.cut(number) == cut
    cells = windows.cells(cut, torch.device('cpu'))
    sizes = cells.bincount()
    assert len(sizes) == number
    assert sizes.sum() == 256
    assert sizes.max() - sizes.min() <= 16  # a row or a column, where the side is no multiple
    middles = windows.middles(cut, torch.device('cpu'))
    assert cells[middles].tolist() == list(range(number))  # the middle of a cell lies in it


def test_about_so_many_cells():
    rows, columns = WindowPartition(16, 16).cut(127, exact=False)  # a prime
    assert abs(rows - columns) <= 1
    assert 115 < rows * columns <= 127
