"""Operators on boxes against stored outputs of compiled mmcv 2.3.6 (tests/data/ops/make_boxes.py) and geometry."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmitpn.ops import boxes, extension, rotated
from mmitpn.ops import nms as operators

DATA = Path(__file__).parents[1] / 'data' / 'ops'


def _script():
    spec = importlib.util.spec_from_file_location('make_boxes', DATA / 'make_boxes.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()


@pytest.fixture(scope='module')
def stored():
    with np.load(DATA / 'boxes.npz') as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize('seed', range(len(SCRIPT.NUMBERS)))
@pytest.mark.parametrize('name', SCRIPT.RUNS)
def test_outputs_are_those_of_the_compiled_operator(name, seed, stored):
    actual = SCRIPT.RUNS[name](extension, seed, SCRIPT.NUMBERS[seed])
    expected = [value for key, value in stored.items() if key.startswith(f'{name}/{seed}/')]
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        if other.dtype == torch.int16:
            assert one.tolist() == other.tolist()
        else:
            finite = other[other.isfinite()]
            scale = finite.abs().max().item() if finite.numel() else 0
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale, equal_nan=True)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_overlaps_in_other_dtypes(dtype):
    first = torch.tensor([[0, 0, 10, 10], [5, 5, 15, 15]], dtype=dtype)
    second = torch.tensor([[0, 0, 10, 5], [0, 0, 10, 10], [20, 20, 30, 30]], dtype=dtype)
    ious = first.new_empty(2, 3)
    boxes.bbox_overlaps(first, second, ious, 0, False, 0)
    expected = torch.tensor([[0.5, 1, 0], [0, 25 / 175, 0]], dtype=dtype)
    torch.testing.assert_close(ious, expected)


def test_overlaps_in_parts_are_those_at_once(monkeypatch):
    first, second = SCRIPT.boxes(1, 33)[0], SCRIPT.boxes(3, 20)[0]
    whole, parts = torch.zeros(33, 20), torch.zeros(20, 33).t()  # an output that is not contiguous
    boxes.bbox_overlaps(first, second, whole, 0, False, 1)
    monkeypatch.setattr(boxes, 'PAIRS', 50)
    boxes.bbox_overlaps(first, second, parts, 0, False, 1)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(('mode', 'aligned', 'message'), [(2, False, 'mode=2'), (0, True, '2 and 3 boxes')])
def test_overlaps_of_bad_arguments(mode, aligned, message):
    with pytest.raises(ValueError, match=message):
        boxes.bbox_overlaps(torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, 3), mode, aligned, 0)


def test_overlaps_of_nothing():
    ious = torch.zeros(0, 3)
    boxes.bbox_overlaps(torch.zeros(0, 4), torch.zeros(3, 4), ious, 0, False, 0)
    assert ious.shape == (0, 3)


def _boxes(number, seed=0):
    random = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(number, 2, generator=random) * 90, torch.rand(number, 2, generator=random) * 40
    return torch.cat((corner, corner + size), 1).round(), (torch.rand(number, generator=random) * 8).round() / 8


def _iou(a, b, offset):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    areas = sum((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b))
    union = areas - width * height
    return width * height / union if union else float('nan')


def _greedy(boxes, order, suppresses):
    """Groups of positions in ``order``: the kept box and those it suppressed."""
    groups, gone = [], set()
    for i in range(len(order)):
        if i in gone:
            continue
        lost = [j for j in range(i + 1, len(order)) if j not in gone and suppresses(i, j)]
        gone.update(lost)
        groups.append([i, *lost])
    return groups


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
def test_nms_keeps_what_the_loop_keeps(dtype, offset, monkeypatch):
    monkeypatch.setattr(operators, 'BLOCK', 16)  # several blocks, and parts of the boxes after them
    monkeypatch.setattr(operators, 'PAIRS', 64)
    boxes, scores = _boxes(90)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    order = scores.sort(0, descending=True)[1]  # many scores are equal: their order is that of Tensor.sort, as in mmcv
    rows = boxes.double()[order].tolist()
    groups = _greedy(rows, rows, lambda i, j: _iou(rows[i], rows[j], offset) > 0.37)
    actual = operators.nms(boxes, scores, iou_threshold=0.37, offset=offset)
    assert actual.tolist() == [int(order[group[0]]) for group in groups]
    assert 10 < len(actual) < 80


def test_nms_of_a_chain_of_boxes():
    # Each box overlaps the next: every second one is kept, which takes the longest to decide.
    start = torch.arange(300.0)[:, None] * 3
    boxes = torch.cat((start, torch.zeros(300, 1), start + 5, torch.full((300, 1), 5.0)), 1)
    for offset in (0, 1):
        kept = operators.nms(boxes, torch.linspace(1, 0, 300), 0.2, offset)
        assert kept.tolist() == list(range(0, 300, 2))


@pytest.mark.parametrize('offset', [0, 1])
def test_an_iou_equal_to_the_threshold_is_kept(offset):
    boxes = torch.tensor([[0.0, 0, 10 - offset, 10 - offset], [0, 0, 10 - offset, 7 - offset]])
    assert operators.nms(boxes, torch.tensor([0.5, 0.4]), 0.7, offset).tolist() == [0, 1]
    assert operators.nms(boxes, torch.tensor([0.5, 0.4]), 0.69, offset).tolist() == [0]


def test_nms_match_groups_what_the_loop_groups(monkeypatch):
    monkeypatch.setattr(operators, 'BLOCK', 16)
    monkeypatch.setattr(operators, 'PAIRS', 64)
    boxes, scores = _boxes(90, seed=1)
    order = scores.sort(0, descending=True)[1]
    rows = boxes.double()[order].tolist()
    groups = _greedy(rows, rows, lambda i, j: _iou(rows[i], rows[j], 0) >= 0.25)
    actual = operators.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.25)
    assert actual == [order[group].tolist() for group in groups]
    assert max(map(len, actual)) > 2


def test_soft_nms_writes_only_the_picked_rows():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    dets = torch.full((3, 5), -7.0)
    index = operators.softnms(boxes, torch.tensor([0.9, 0.8, 0.7]), dets, 0.3, 0.5, 0.2, 1, 0)
    assert index.tolist() == [0, 2]  # 0.8 * (1 - 0.9) falls below 0.2
    torch.testing.assert_close(dets[:2, 4], torch.tensor([0.9, 0.7]))
    assert torch.equal(dets[:2, :4], boxes[[0, 2]])
    assert (dets[2] == -7).all()


def test_soft_nms_of_an_unknown_method():
    with pytest.raises(ValueError, match='method=3'):
        operators.softnms(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 5), 0.3, 0.5, 0.2, 3, 0)


def test_nothing_is_kept_of_nothing():
    none, scores = torch.zeros(0, 4), torch.zeros(0)
    assert operators.nms(none, scores, 0.5, 0).dtype == torch.long
    assert len(operators.nms(none, scores, 0.5, 1)) == len(operators.nms_match(torch.zeros(0, 5), 0.5)) == 0
    assert len(operators.softnms(none, scores, torch.zeros(0, 5), 0.3, 0.5, 0.1, 0, 0)) == 0
    keep, number, parent = operators.line_nms_forward(torch.zeros(0, 77), scores, 1.0, 4)
    assert (keep.shape, int(number), parent.shape) == ((0,), 0, (0,))


def _lanes(number, seed):
    random = np.random.default_rng(seed)
    lanes = np.zeros((number, 77))
    lanes[:, 2] = random.uniform(-0.1, 1, number)
    lanes[:, 4] = random.integers(0, 60, number)
    lanes[:, 5:] = random.integers(0, 4, (number, 1)) * 20 + random.uniform(0, 6, (number, 72))
    return lanes, random.permutation(number) / number


def _line_loop(lanes, scores, threshold, top_k):
    """``line_nms_cuda_kernel.cuh`` of mmcv 2.3.6, one lane after the other."""
    number = len(lanes)
    order = np.argsort(-scores)

    def close(a, b):
        starts = [int(lane[2] * 71 + 0.5) for lane in (a, b)]
        end = min(*(start + int(lane[4]) - 1 for start, lane in zip(starts, (a, b), strict=True)), 71)
        start = max(starts)
        if end < start or start < 0:
            return False
        return np.abs(a[5 + start : 6 + end] - b[5 + start : 6 + end]).sum() < threshold * (end - start + 1)

    keep, parent, gone = [], np.zeros(number, int), set()
    for i in range(number):
        if i in gone:
            continue
        for j in range(i + 1, number):
            if close(lanes[i], lanes[order[j]]):  # the kernel does not sort the first
                gone.add(j)
                parent[order[j]] = len(keep) + 1
        parent[order[i]] = len(keep) + 1
        keep.append(order[i])
        if len(keep) == top_k:
            break
    return keep + [0] * (number - len(keep)), min(top_k, len(keep)), parent


@pytest.mark.parametrize(('number', 'threshold', 'top_k', 'ordered'), [
    (40, 2.2, 99, False), (40, 2.2, 3, True), (70, 1.9, 99, True), (5, 0.0, 5, False), (30, 2.5, 0, True),
])  # fmt: skip
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_line_nms_is_the_kernel(number, threshold, top_k, ordered, dtype, monkeypatch):
    monkeypatch.setattr(operators, 'BLOCK', 16)
    lanes, scores = _lanes(number, number)
    if ordered:
        scores = -np.sort(-scores)
    threshold = float(np.float32(threshold))
    keep, kept, parent = _line_loop(lanes, scores, threshold, top_k)
    actual = operators.line_nms_forward(torch.from_numpy(lanes).to(dtype), torch.from_numpy(scores), threshold, top_k)
    assert actual[0].tolist() == list(keep)
    assert int(actual[1]) == kept
    assert actual[2].tolist() == parent.tolist()


@pytest.mark.parametrize(('shape', 'top_k', 'message'), [((2, 76), 1, r'\(2, 76\)'), ((2, 77), -1, 'top_k=-1')])
def test_line_nms_of_bad_arguments(shape, top_k, message):
    with pytest.raises(ValueError, match=message):
        operators.line_nms_forward(torch.zeros(shape), torch.zeros(2), 1.0, top_k)


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


def test_rotated_overlaps_in_parts_are_those_at_once(monkeypatch):
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
def test_rotated_overlaps_of_bad_arguments(mode, aligned, message):
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
