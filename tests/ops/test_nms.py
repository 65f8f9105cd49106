"""Non-maximum suppression against loops over the boxes; test_boxes.py compares with a compiled mmcv."""

import numpy as np
import pytest
import torch

from mmitpn.ops import nms as operators


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
