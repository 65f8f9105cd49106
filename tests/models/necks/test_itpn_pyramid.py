from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mmitpn.checkpoint import load_pretrained
from mmitpn.models.backbones import FastITPN
from mmitpn.models.layers import PatchSplit
from mmitpn.models.necks import ITPNPyramid
from mmitpn.registry import MODELS

CHANNELS = (12, 24, 48)


def pyramid(**kwargs) -> ITPNPyramid:
    torch.manual_seed(2)
    return ITPNPyramid(CHANNELS, **{'out_channels': 32, **kwargs})


def maps(height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    sides = [(-(-height // s), -(-width // s)) for s in (4, 8, 16)]
    return [torch.randn(batch, c, *side) for c, side in zip(CHANNELS, sides, strict=True)]


def test_equals_the_authors_outputs(reference_case, assert_matches_reference):
    reference = reference_case('fast_tiny_pretrain')
    backbone = FastITPN('tiny').eval()
    neck = ITPNPyramid(backbone.out_channels, num_outs=3).eval()
    load_pretrained(backbone, reference.weights)
    load_pretrained(neck, reference.weights)
    with torch.no_grad():
        outs = neck(backbone(reference.image))
    for out, expected in zip(outs[::-1], reference.case['outs'], strict=True):  # theirs start at stride 16
        assert_matches_reference(out, expected)


@pytest.mark.parametrize(('arch', 'millions'), [('tiny', 2.58), ('small', 2.58), ('base', 2.77), ('large', 3.15)])
def test_has_the_published_number_of_parameters(arch, millions):
    with torch.device('meta'):
        neck = ITPNPyramid(FastITPN(arch).out_channels)
    assert sum(p.numel() for p in neck.parameters()) / 1e6 == pytest.approx(millions, abs=0.011)


@pytest.mark.parametrize('num_outs', [3, 4, 5])
@pytest.mark.parametrize('size', [(64, 96), (1, 1), (65, 47)])
def test_levels_and_odd_sizes(num_outs, size):
    outs = pyramid(num_outs=num_outs)(maps(*size))
    assert [tuple(x.shape) for x in outs] == [
        (2, 32, -(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32, 64)[:num_outs]
    ]
    assert all(x.is_contiguous() and x.isfinite().all() for x in outs)


@pytest.mark.parametrize(('start', 'num_outs'), [(1, 2), (1, 5), (2, 1), (2, 3), (3, 1), (3, 2)])
def test_start_level_leaves_the_finer_ones_out(start, num_outs):
    inputs = maps(64, 96)
    neck = pyramid(start_level=start, num_outs=num_outs)
    outs = neck(inputs)
    assert neck.strides == (4, 8, 16, 32, 64, 128)[start : start + num_outs]
    assert len(outs) == num_outs
    for out, expected in zip(outs, pyramid()(inputs)[start:], strict=False):
        assert torch.equal(out, expected)
    sum(out.sum() for out in outs).backward()
    assert all(p.grad is not None for p in neck.parameters() if p.requires_grad)


def test_extra_levels_pool_the_coarsest():
    inputs = maps(64, 128)
    average, largest = pyramid(extra_pool='avg')(inputs), pyramid(extra_pool='max')(inputs)
    assert_close(average[3], F.avg_pool2d(average[2], 2))
    assert_close(average[4], F.avg_pool2d(average[3], 2))
    assert_close(largest[3], F.max_pool2d(largest[2], 2))
    # A side of 3 becomes 2: the average counts only what is there.
    ones = pyramid()._pool(torch.ones(1, 1, 3, 3))
    assert_close(ones, torch.ones(1, 1, 2, 2))


def test_every_operation_is_per_position():
    neck = pyramid(num_outs=3).eval()
    inputs = maps(64, 64, batch=1)
    changed = [x.clone() for x in inputs]
    changed[2][..., 0, 0] += 1  # one place at stride 16: 2x2 places at stride 8, 4x4 at stride 4
    for level, (before, after) in enumerate(zip(neck(inputs), neck(changed), strict=True)):
        moved = (before != after).any(1)[0]
        reach = 4 >> level
        assert moved[:reach, :reach].all()
        assert moved.sum() == reach * reach


def test_split_is_the_transposed_convolution():
    split = PatchSplit(24, 16)
    x = torch.randn(2, 3, 5, 24)
    expected = split.reduction(split.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert_close(split(x), expected)


def test_checkpointing_and_backward():
    plain, saving = pyramid(), pyramid(with_cp=True)
    inputs = maps(48, 48)
    for neck in (plain, saving):
        sum(out.square().sum() for out in neck(inputs)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert a.grad is not None, name
        assert_close(a.grad, b.grad)


def test_autocast_stays_finite():
    neck = pyramid()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        outs = neck(maps(40, 56))
        sum(out.float().mean() for out in outs).backward()
    assert all(out.isfinite().all() for out in outs)
    assert all(p.grad.isfinite().all() for p in neck.parameters())


def test_builds_from_a_config_and_keeps_its_state():
    cfg = {'type': 'mmitpn.ITPNPyramid', 'in_channels': CHANNELS, 'out_channels': 32, 'depth': 2, 'hidden_channels': 40}
    first, second = MODELS.build(dict(cfg)), MODELS.build(dict(cfg))
    second.load_state_dict(first.state_dict())
    inputs = maps(32, 32)
    for a, b in zip(first(inputs), second(inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'in_channels': (12, 24)}, 'three maps'),
        ({'num_outs': 6}, 'num_outs is 6; with start_level=0 allowed: 3'),
        ({'num_outs': 1, 'start_level': 1}, 'allowed: 2 to 5'),
        ({'start_level': 4}, 'start_level is 4'),
        ({'kind': 'linnear'}, "kind is 'linnear'"),
        ({'extra_pool': 'sum'}, "'avg', 'max'"),
        ({'out_channels': 0}, 'out_channels is 0'),
        ({'depth': 0}, 'depth is 0'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ITPNPyramid(**{'in_channels': CHANNELS, **kwargs})


def test_bad_inputs_are_named():
    inputs = maps(64, 64)
    with pytest.raises(ValueError, match=r'2 map\(s\).*out_indices'):
        pyramid()(inputs[:2])
    with pytest.raises(ValueError, match=r"channels, but in_channels are \(12, 24, 48\).*set the neck's in_channels"):
        pyramid()([inputs[0], inputs[1], inputs[2][:, :40]])
    with pytest.raises(ValueError, match='half of the one before'):
        pyramid()([inputs[0], inputs[1][..., :5], inputs[2]])
