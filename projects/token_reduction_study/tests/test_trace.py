"""What is recorded of token migration and token gathering, and the drawing of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from token_study.trace import draw_tokens, trace_tokens

from mmitpn.models.backbones import FastITPN

SMALL = {'depths': (1, 1, 3), 'embed_dim': 48, 'num_heads': 3}
SIZE = (136, 200)  # 9x13 tokens: windows of 3x4, the last column a padded one


@pytest.fixture
def trace():
    torch.manual_seed(0)
    model = FastITPN(
        SMALL,
        weight_init='xavier',
        token_gathering={'window_size': 4, 'num_tokens': 4, 'global_blocks': (1,)},
        token_migration={'at': (1, 2)},
    ).eval()
    return trace_tokens(model, torch.randn(1, 3, *SIZE))


def test_what_was_dropped(trace):
    assert list(trace.kept) == [1, 2]
    assert [tuple(kept.shape) for kept in trace.kept.values()] == [(9, 13)] * 2
    first, second = trace.kept.values()
    assert first.sum() == 9 * 6 + 3 * 3  # half of the 12 positions per window; the 3 tokens of padded ones all stay
    assert (first | ~second).all()  # what is gone stays gone


def test_attention_between_windows(trace):
    assert list(trace.received) == [0, 2]  # block 1 is global
    for block, received in trace.received.items():
        leaving = trace.leaving[block]
        assert leaving.shape == (trace.grid.rows, trace.grid.columns)
        assert ((leaving > 0.3) & (leaving < 1)).all()
        assert received.shape == (9, 13)
    # Before tokens are dropped, what leaves the windows is what arrives in them.
    tokens = trace.grid.weight(torch.device('cpu')).sum(-1).view(trace.grid.rows, trace.grid.columns)
    assert trace.grid.padding == (0, 3)
    torch.testing.assert_close(trace.received[0].sum(), (trace.leaving[0] * tokens).sum())


def test_nothing_is_left_behind_in_the_network():
    model = FastITPN(SMALL, token_migration={}).eval()
    trace_tokens(model, torch.randn(1, 3, 64, 64))
    assert model.token_reduction.observer is None


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(ValueError, match='no token_migration and no token_gathering here'):
        trace_tokens(FastITPN(SMALL), torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match='2 images were given'):
        trace_tokens(FastITPN(SMALL, token_migration={}), torch.randn(2, 3, 64, 64))


def test_the_drawing(trace, tmp_path):
    image = np.full((*SIZE, 3), 200, np.uint8)
    out = draw_tokens(image, trace, tmp_path / 'new' / 'tokens.png', title='a test')
    assert fraction_of_dropped(out) == pytest.approx(expected_fraction(trace, SIZE), abs=0.02)


def test_a_trace_without_gathering_is_drawn_too(tmp_path):
    model = FastITPN(SMALL, token_migration={}).eval()
    trace = trace_tokens(model, torch.randn(1, 3, 64, 64))
    out = draw_tokens(np.full((64, 64, 3), 200, np.uint8), trace, tmp_path / 'tokens.png')
    assert fraction_of_dropped(out) == pytest.approx(expected_fraction(trace, (64, 64)), abs=0.02)


def fraction_of_dropped(path):
    """Of the pixels of a gray image (200) that is drawn as it is or dropped (44), the fraction of the dropped ones."""
    with Image.open(path) as png:
        assert png.format == 'PNG'
        pixels = np.asarray(png.convert('RGB'))
    whole, dropped = ((pixels == value).all(-1).sum() for value in (200, 44))
    assert whole > 10_000
    return dropped / (whole + dropped)


def expected_fraction(trace, size):
    """The same of the panels: the image, and one after each step that drops tokens."""
    masks = [kept.numpy().repeat(16, 0).repeat(16, 1)[: size[0], : size[1]] for kept in trace.kept.values()]
    return np.mean([np.zeros(size), *(~mask for mask in masks)])
