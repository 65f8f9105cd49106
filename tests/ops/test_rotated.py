"""Rotated boxes against geometry; the outputs of the compiled mmcv are compared in test_boxes.py."""

import math

import pytest
import torch

from mmitpn.ops import rotated


def _overlap(first, second, mode=0, aligned=False):
    ious = first.new_full((len(first),) if aligned else (len(first) * len(second),), -1)
    rotated.box_iou_rotated(first, second, ious, mode_flag=mode, aligned=aligned)
    return ious if aligned else ious.view(len(first), len(second))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
def test_overlaps_of_known_shapes(dtype):
    square = [10.0, 20, 2, 2, 0]
    second = torch.tensor([
        square,
        [10, 20, 2, 2, math.pi / 4],  # an octagon in common
        [11, 20, 2, 2, math.pi / 2],  # half of it
        [10, 20, 1, 1, 0.3],  # inside
        [40, 20, 2, 2, 0],  # far away
        [10, 20, 0, 2, 0],  # without area
    ], dtype=dtype)  # fmt: skip
    octagon = 8 * (math.sqrt(2) - 1)
    expected = torch.tensor([[1, octagon / (8 - octagon), 1 / 3, 1 / 4, 0, 0]], dtype=dtype)
    first = torch.tensor([square], dtype=dtype)
    precision = {torch.float64: 1e-9, torch.float32: 1e-6, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(_overlap(first, second), expected, rtol=0, atol=precision)
    expected = torch.tensor([1, octagon / 4, 1 / 2, 1 / 4, 0, 0], dtype=dtype)
    torch.testing.assert_close(
        _overlap(first.expand_as(second), second, mode=1, aligned=True), expected, rtol=0, atol=precision
    )


def test_overlaps_do_not_depend_on_the_frame():
    random = torch.Generator().manual_seed(0)
    first, second = (torch.rand(30, 5, generator=random, dtype=torch.float64) * 9 for _ in range(2))
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    moved = [torch.cat((boxes[:, :2] @ turn + 50, boxes[:, 2:4], boxes[:, 4:] + angle), 1) for boxes in (first, second)]
    whole = _overlap(first, second)
    torch.testing.assert_close(_overlap(*moved), whole, rtol=0, atol=1e-9)
    torch.testing.assert_close(_overlap(second, first).t(), whole, rtol=0, atol=1e-9)
    assert 0.1 < (whole > 0).double().mean() < 0.999


def test_overlaps_in_parts_are_those_at_once(monkeypatch):
    random = torch.Generator().manual_seed(0)
    first, second = torch.rand(20, 5, generator=random) * 9, torch.rand(17, 5, generator=random) * 9
    whole = _overlap(first, second), _overlap(first[:17], second, aligned=True)
    monkeypatch.setattr(rotated, 'PAIRS', 6)
    monkeypatch.setattr(rotated, 'CENTERS', 40)
    assert torch.equal(_overlap(first, second), whole[0])
    assert torch.equal(_overlap(first[:17], second, aligned=True), whole[1])


def test_nms_rotated_keeps_what_the_loop_keeps():
    random = torch.Generator().manual_seed(1)
    dets = torch.rand(80, 5, generator=random, dtype=torch.float64) * torch.tensor([40.0, 40, 20, 20, 6])
    scores = torch.rand(80, generator=random, dtype=torch.float64)
    order = scores.sort(descending=True)[1]
    iou = _overlap(dets[order], dets[order])
    kept = []
    for i in range(80):
        if not any(iou[j, i] >= 0.25 for j in kept):
            kept.append(i)
    actual = rotated.nms_rotated(dets, scores, order, dets[order], torch.zeros(0, dtype=torch.int), 0.25, 0)
    assert actual.tolist() == order[kept].tolist()
    assert 10 < len(kept) < 70


def test_nothing():
    none, long = torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)
    assert len(rotated.nms_rotated(none, torch.zeros(0), long, none, long, 0.5, 0)) == 0
    assert _overlap(none, torch.zeros(3, 5)).shape == (0, 3)
    output, features = torch.zeros(0, 2, 3, 3), torch.ones(1, 2, 4, 4)
    rotated.roi_align_rotated_forward(features, torch.zeros(0, 6), output, 3, 3, 1.0, 2, True, False)
    rotated.roi_align_rotated_backward(output, torch.zeros(0, 6), features, 3, 3, 1.0, 2, True, False)
    assert (features == 1).all()


@pytest.mark.parametrize(('mode', 'aligned', 'message'), [(2, False, 'mode_flag=2'), (0, True, '2 and 3 boxes')])
def test_overlaps_of_bad_arguments(mode, aligned, message):
    with pytest.raises(ValueError, match=message):
        rotated.box_iou_rotated(torch.zeros(2, 5), torch.zeros(3, 5), torch.zeros(6), mode, aligned)


@pytest.mark.parametrize('clockwise', [False, True])
def test_roi_align_of_a_plane_is_the_plane_at_the_bins(clockwise):
    # Bilinear samples of a plane are exact, and their average is the value in the middle of the bin.
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing='ij')
    features = torch.stack((y, x)).double()[None]
    angle = 0.4
    rois = torch.tensor([[0, 20.0, 15, 12, 8, angle]], dtype=torch.float64)
    output = features.new_zeros(1, 2, 2, 3)
    rotated.roi_align_rotated_forward(features, rois, output, 2, 3, 1.0, 0, True, clockwise)
    for row in range(2):
        for column in range(3):
            down, right = (row - 0.5) * 4, (column - 1) * 4
            turn = -angle if clockwise else angle
            expected = (
                14.5 + down * math.cos(turn) - right * math.sin(turn),
                19.5 + down * math.sin(turn) + right * math.cos(turn),
            )
            assert output[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-6)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, rois, settings):
        ctx.save_for_backward(rois)
        ctx.settings, ctx.shape = settings, features.shape
        output = features.new_zeros(len(rois), features.size(1), *settings[:2])
        rotated.roi_align_rotated_forward(features, rois, output, *settings)
        return output

    @staticmethod
    def backward(ctx, grad):
        grad_input = grad.new_zeros(ctx.shape)
        rotated.roi_align_rotated_backward(grad.contiguous(), *ctx.saved_tensors, grad_input, *ctx.settings)
        return grad_input, None, None


@pytest.mark.parametrize('settings', [(2, 2, 0.5, 0, True, False), (1, 3, 1.0, 2, False, True)])
def test_derivatives_are_the_finite_differences(settings, monkeypatch):
    monkeypatch.setattr(rotated, 'SAMPLES', 10)  # a box at a time
    monkeypatch.setattr(rotated, 'LARGEST_TEMPORARY', 24)  # a channel at a time
    features = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 2.0, 2, 4, 3, 0.5], [1, 3, 2, 4, 4, -1], [1, 0, 0, 2, 3, 2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(_RoIAlign.apply, (features, rois, settings))


def test_roi_align_of_features_that_are_not_contiguous():
    features, rois = torch.randn(1, 4, 5, 6), torch.tensor([[0, 3.0, 2, 5, 3, 0.5]])
    output, strided = torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, 4).permute(0, 3, 1, 2)
    rotated.roi_align_rotated_forward(features, rois, output, 2, 2, 1.0, 2, True, False)
    rotated.roi_align_rotated_forward(
        features.to(memory_format=torch.channels_last), rois, strided, 2, 2, 1.0, 2, True, False
    )
    assert output.abs().max() > 0.1
    torch.testing.assert_close(output, strided)


@pytest.mark.parametrize(
    ('rois', 'message'), [(torch.zeros(1, 5), r'\(1, 5\)'), (torch.tensor([[0, 1, 1, -1.0, 1, 0]]), 'negative width')]
)
def test_roi_align_of_bad_boxes(rois, message):
    with pytest.raises(ValueError, match=message):
        rotated.roi_align_rotated_forward(
            torch.zeros(1, 1, 3, 3), rois, torch.zeros(1, 1, 1, 1), 1, 1, 1.0, 0, True, False
        )
