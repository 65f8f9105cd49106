"""Outputs of chosen blocks of the main stage."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mmitpn.checkpoint import load_pretrained
from mmitpn.models.backbones import ITPN, FastITPN

NANO = {'depths': (1, 2, 4), 'embed_dim': 48, 'num_heads': 3}
IMAGE = (2, 3, 70, 40)


def build(**settings) -> FastITPN:
    torch.manual_seed(1)
    return FastITPN(NANO, **settings).eval()


def block_outputs(model, x) -> list[torch.Tensor]:
    """What each block of the main stage returns, as maps of the image."""
    outs = []
    handles = [block.register_forward_hook(lambda _, __, out: outs.append(out)) for block in model.blocks]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return [out.permute(0, 3, 1, 2) for out in outs]


@pytest.mark.parametrize(('given', 'blocks'), [((0, 2), (0, 2)), ((-3, -1), (1, 3)), ([3], (3,))])
@pytest.mark.parametrize('cls', [FastITPN, ITPN])
def test_equal_what_the_blocks_return(cls, given, blocks):
    torch.manual_seed(1)
    model = cls(NANO, out_indices=(1, 2), out_blocks=given).eval()
    plain = cls(NANO, out_indices=(1, 2)).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(IMAGE)
    expected = block_outputs(plain, x)
    with torch.no_grad():
        maps, (first, last) = model(x), plain(x)
    assert model.out_blocks == blocks
    assert model.strides == (8, 16, *(16 for _ in blocks))
    assert model.out_channels == (24, 48, *(48 for _ in blocks)) == tuple(out.shape[1] for out in maps)
    for ours, theirs in zip(maps, (first, last, *(expected[i] for i in blocks)), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.is_contiguous(memory_format=torch.channels_last)
    assert maps[2].shape == (2, 48, 5, 3)


def test_the_norm_of_the_last_block_is_the_stride_16_map():
    model = build(out_blocks=(-1,))
    torch.nn.init.normal_(model.norm.weight)
    *_, last, raw = model(torch.randn(IMAGE))
    assert_close(model.norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), last)


def test_blocks_after_the_last_are_not_run_and_not_trained():
    whole, model = build(out_blocks=(1,)), build(out_indices=(), out_blocks=(1,)).train()
    model.load_state_dict(whole.state_dict())
    for block in model.blocks[2:]:
        block.register_forward_hook(lambda *_: pytest.fail('a block after the last was run'))
    x = torch.randn(IMAGE)
    (out,) = model(x)
    assert torch.equal(out, whole(x)[3])
    out.sum().backward()
    assert {name for name, p in model.named_parameters() if (p.grad is None) == p.requires_grad} == set()
    assert not any(p.requires_grad for p in (*model.blocks[2].parameters(), *model.norm.parameters()))
    assert not model.blocks[3].training


@pytest.mark.parametrize(
    'reduction',
    [
        {'token_migration': {'keep_ratio': 0.5, 'at': (1,)}},
        {'token_migration': {'keep_ratio': 0.5, 'at': (1,), 'whole_blocks': 0}},
        {'token_gathering': {'window_size': 2, 'num_tokens': 1}},
        {'token_migration': {'at': (0, 2), 'follow': False}, 'token_gathering': {'window_size': 3}},
    ],
)
def test_dropped_tokens_are_back_in_every_map(reduction):
    model, plain = build(out_blocks=(0, 1, 2, 3), **reduction), build(**reduction)
    x = torch.randn(IMAGE)
    with torch.no_grad():
        maps, expected = model(x), plain(x)
        cut = build(out_indices=(), out_blocks=(1, 2), **reduction)(x)
    for ours, theirs in zip(maps, expected, strict=False):
        assert torch.equal(ours, theirs)
    assert [out.shape for out in maps[3:]] == [(2, 48, 5, 3)] * 4
    assert torch.equal(model.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), maps[2])
    for ours, theirs in zip(cut, maps[4:6], strict=True):
        assert torch.equal(ours, theirs)


def test_a_token_that_was_dropped_keeps_its_value_from_before():
    """Without ``follow``, at the full position: half of the tokens are those of the block before."""
    model = build(out_blocks=(0, 1), token_migration={'keep_ratio': 0.5, 'at': (1,), 'follow': False})
    with torch.no_grad():
        before, after = model(torch.randn(1, 3, 64, 64))[3:]
    same = (before == after).all(1).flatten()
    assert same.sum() == 8


def test_checkpointing_and_autocast():
    plain, saving = build(out_blocks=(1,)).train(), build(out_blocks=(1,), with_cp=True).train()
    x = torch.randn(IMAGE)
    for model in (plain, saving):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            sum(out.float().square().mean() for out in model(x)).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert_close(a.grad, b.grad)


def test_state_dict_and_loading_are_those_without_them(pretrained):
    sizes = {'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1}
    plain, model = FastITPN(sizes), FastITPN.from_pretrained(pretrained, in_channels=6, out_blocks=(0, -1))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.out_channels == (16, 32, 64, 64, 64)
    load_pretrained(plain, pretrained)
    assert torch.equal(model.blocks[2].mlp.w1.weight, plain.blocks[2].mlp.w1.weight)


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'out_blocks': (4,)}, ValueError, r'out_blocks is \(4,\); allowed: blocks of the main stage, 0 to 3'),
        ({'out_blocks': (-5,)}, ValueError, r'-1 to -4'),
        ({'out_blocks': (2, 1)}, ValueError, 'ascending and each once'),
        ({'out_blocks': (3, -1)}, ValueError, 'ascending and each once'),
        ({'out_blocks': (True,)}, ValueError, r'out_blocks is \(True,\)'),
        ({'out_blocks': 3}, TypeError, r'out_blocks is 3; give a tuple'),
        ({'out_indices': ()}, ValueError, r'out_indices are \(\); .*where out_blocks are returned'),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        FastITPN(NANO, **settings)
