"""Conversion between the authors' names and shapes and ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmitpn.checkpoint import convert_from_authors, convert_to_authors, identify
from mmitpn.models.layers import resample_abs_pos_embed

EXTRAS = ('mask_token', 'decoder_embed.', 'lm_head.', 'head.')


def _converted(state):
    return {name for name in state if not name.startswith(EXTRAS)}


def _assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('fast_tiny_pretrain', {'depths': (1, 1, 12), 'dim': 384, 'pyramid': 256, 'pretrain': 768}),
        ('fast_tiny_cls', {'depths': (1, 1, 12), 'dim': 384, 'classes': 1000}),
        ('fast_base_cls', {'depths': (3, 3, 24), 'dim': 512, 'classes': 1000}),
    ],
)
def test_synthetic_layouts_are_the_authors(name, size, reference_shapes, authors_shapes):
    assert authors_shapes(**size) == reference_shapes(name)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('depths', [(1, 2, 3), (3, 1, 2), (0, 1, 1)])
def test_round_trip_is_bit_equal(authors_weights, depths, dtype):
    theirs = {n: v.to(dtype) for n, v in authors_weights(depths, 64, pyramid=24, pretrain=32).items()}
    ours = convert_from_authors(identify(theirs))
    assert not ours.unexpected
    assert set(ours.ignored) == set(theirs) - _converted(theirs)
    _assert_equal(convert_to_authors(ours.state), {name: theirs[name] for name in _converted(theirs)})


def test_our_modules_round_trip(small_backbone, small_neck):
    ours = {**small_backbone().state_dict(), **small_neck().state_dict()}
    _assert_equal(convert_from_authors(identify(convert_to_authors(ours))).state, ours)
    wrapped = {f'{"neck" if n in small_neck().state_dict() else "backbone"}.{n}': v for n, v in ours.items()}
    _assert_equal(convert_to_authors(wrapped), convert_to_authors(ours))


def test_pyramid_alone_needs_no_backbone(small_neck, pretrained):
    ours = small_neck().state_dict()
    theirs = convert_to_authors(ours)
    assert theirs.keys() == {n for n in pretrained if n.startswith(('align', 'split', 'block_', 'fpn'))}


def test_queries_keys_and_values_are_rows_in_that_order(pretrained):
    state = convert_from_authors(identify(pretrained)).state
    parts = state['blocks.2.attn.qkv.weight'].chunk(3)
    assert all(torch.equal(p, pretrained[f'blocks.7.attn.{x}_proj.weight']) for p, x in zip(parts, 'qkv', strict=True))


def test_weights_of_an_unknown_block_are_not_dropped(small_backbone):
    state = small_backbone().state_dict()
    with pytest.raises(ValueError, match=r'no place in a network of depths \(1, 2, 2\): blocks\.2\.'):
        convert_to_authors(state, (1, 2, 2))


def test_only_our_weights_go_to_the_authors_layout(pretrained):
    with pytest.raises(ValueError, match="mmitpn's own weights"):
        convert_to_authors(pretrained)


@pytest.mark.parametrize('target', [(14, 14), (32, 32), (7, 7), (10, 21)])
def test_position_embedding_is_resized_by_target_size(target):
    embedding = torch.randn(1, 196, 8, dtype=torch.float64).half()
    resized = resample_abs_pos_embed(embedding, (14, 14), target)
    grid = embedding.float().view(1, 14, 14, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=target, mode='bicubic', align_corners=False, antialias=False)
    assert resized.dtype == (torch.float16 if target == (14, 14) else torch.float32)
    torch.testing.assert_close(resized.float(), expected.flatten(2).transpose(1, 2))


def test_the_grid_of_the_forward_pass_and_of_loading_agree(small_backbone, pretrained):
    # A module whose own grid differs is, for an image of that grid, the same network.
    from mmitpn.checkpoint import load_pretrained

    native, resized = small_backbone(), small_backbone(img_size=128)
    load_pretrained(native, pretrained)
    load_pretrained(resized, pretrained)
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        for one, other in zip(native(image), resized(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_names_of_the_release_before_are_accepted_with_a_warning():
    from mmitpn import checkpoint

    with pytest.warns(DeprecationWarning, match='to_ours is mmitpn.checkpoint.convert_from_authors now'):
        assert checkpoint.to_ours is convert_from_authors
    with pytest.warns(DeprecationWarning, match='to_authors is mmitpn.checkpoint.convert_to_authors now'):
        assert checkpoint.to_authors is convert_to_authors
    with pytest.raises(AttributeError, match=r"no attribute 'to_theirs'; public names: FileInfo"):
        checkpoint.to_theirs  # noqa: B018
