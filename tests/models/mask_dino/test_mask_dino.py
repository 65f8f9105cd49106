"""MaskDINO's pixel decoder, the start of its queries, and its losses."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

import torchvision
from mmdet.models.task_modules.assigners import BBoxL1Cost, CrossEntropyLossCost, DiceCost, FocalLossCost

from mmitpn.models.dino.matching import assign
from mmitpn.models.mask_dino import LayerOutputs, MaskDINOTargets, UnitGIoULoss
from mmitpn.models.mask_dino.matching import MatchingCosts
from mmitpn.models.mask_dino.pixel_decoder import LevelLayout, MaskDINOPixelDecoder
from mmitpn.models.mask_dino.query_init import masks_to_boxes
from mmitpn.models.mask_dino.targets import sample_masks, targets_from_label_maps

R50 = (256, 512, 1024, 2048)
STRIDES = (4, 8, 16, 32)


@pytest.mark.parametrize(
    ('order', 'num_inputs', 'num_levels', 'released', 'inputs', 'levels', 'positions', 'finest'),
    [
        ('low2high', 3, 3, False, [1, 2, 3], [0, 1, 2], [0, 1, 2], 0),
        ('high2low', 3, 3, False, [3, 2, 1], [0, 1, 2], [0, 1, 2], 2),
        ('low2high', 3, 5, False, [1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 0),
        ('low2high', 3, 5, True, [1, 2, 3], [0, 1, 2, 4, 3], [0, 1, 2, 3, 4], 0),
        ('high2low', 3, 5, False, [3, 2, 1], [4, 3, 0, 1, 2], [4, 3, 0, 1, 2], 4),
        ('high2low', 3, 5, True, [3, 2, 1], [4, 3, 0, 1, 2], [3, 4, 0, 1, 2], 4),
        ('low2high', 4, 5, True, [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 0),
    ],
)
def test_order_of_levels(order, num_inputs, num_levels, released, inputs, levels, positions, finest):
    layout = LevelLayout(R50, STRIDES, num_inputs, num_levels, order, released=released)
    assert (layout.inputs, layout.order, layout.positions, layout.finest) == (inputs, levels, positions, finest)
    assert layout.base == 3


@pytest.mark.parametrize(('order', 'base'), [('high2low', 1), ('low2high', 3)])
def test_where_extra_levels_start_with_equal_widths(order, base):
    assert LevelLayout((256,) * 4, STRIDES, 3, 4, order, released=True).base == base
    assert LevelLayout((256,) * 4, STRIDES, 3, 4, order, released=False).base == 3


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'num_inputs': 5}, r'num_inputs is 5, but there are 4 maps .* allowed 1 to 4; let the neck give more'),
        ({'num_levels': 2}, 'num_levels is 2; allowed: num_inputs=3 or more'),
        ({'order': 'up'}, "order is 'up'; allowed: 'low2high', 'high2low'"),
        ({'strides': (8, 16, 32, 64)}, r'strides \(8, 16, 32, 64\) .* beginning with 4'),
        ({'strides': (4, 8)}, 'give one stride per map'),
        ({'feat_channels': 48}, 'feat_channels is 48; give a multiple of 32'),
    ],
)
def test_inconsistent_settings_raise(change, message):
    with pytest.raises(ValueError, match=message):
        MaskDINOPixelDecoder(R50, **{'strides': STRIDES, **change})


def small(**settings):
    torch.manual_seed(1)
    model = MaskDINOPixelDecoder(
        (32, 32, 32, 32),
        feat_channels=32,
        out_channels=16,
        num_layers=1,
        num_heads=4,
        feedforward_channels=32,
        **{'num_levels': 5, **settings},
    )
    model.init_weights()
    return model.eval()


def maps(size, batch=2):
    torch.manual_seed(2)
    return [torch.randn(batch, 32, -(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]


@pytest.mark.parametrize('order', ['low2high', 'high2low'])
@pytest.mark.parametrize('size', [(64, 96), (100, 61)])
def test_shapes_for_odd_image_sizes(order, size):
    features, levels = small(order=order)(maps(size))
    assert features.shape == (2, 16, -(-size[0] // 4), -(-size[1] // 4))
    sizes = [tuple(level.shape[-2:]) for level in levels]
    assert sorted(sizes, reverse=order == 'low2high') == sizes
    assert len(sizes) == 5


def test_padding_is_not_attended_to():
    model, inputs = small(num_levels=3), maps((64, 96))
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):  # it sees all of a map
            module.forward = lambda x: x
    padding = torch.zeros(2, 16, 24, dtype=torch.bool)
    padding[1, :, 16:] = True
    with torch.no_grad():
        before = model(inputs, padding)[1][0]
        for level in inputs[1:]:
            level[1, :, :, level.shape[-1] * 2 // 3 :] += 100.0
        after = model(inputs, padding)[1][0]
    torch.testing.assert_close(after[..., :8], before[..., :8])
    assert not torch.equal(after[1, :, :, 8:], before[1, :, :, 8:])


def test_checkpointing_changes_nothing():
    inputs = maps((64, 64))
    outs = []
    for with_cp in (False, True):
        model = small(with_cp=with_cp).train()
        features, _ = model(inputs)
        features.square().mean().backward()
        outs.append((features.detach(), model.encoder.layers[0].ffn.layers[1].weight.grad))
    for one, two in zip(*outs, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize('leading', [(5,), (2, 3)])
def test_masks_to_boxes_equals_torchvision(leading):
    masks = torch.rand(*leading, 9, 13) > 0.9
    masks[..., 4, 6] = True  # none is empty: older versions of torchvision raise
    boxes, filled = masks_to_boxes(masks)
    assert filled.all()
    assert torch.equal(boxes.flatten(0, -2).float(), torchvision.ops.masks_to_boxes(masks.flatten(0, -3)))


def test_an_empty_mask_has_a_box_of_zeros():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[1, 3, 5] = True
    boxes, filled = masks_to_boxes(masks)
    assert boxes.tolist() == [[0, 0, 0, 0], [5, 3, 5, 3]]
    assert filled.tolist() == [False, True]
    assert masks_to_boxes(masks[:0])[0].shape == (0, 4)


class ScaledL1Cost(BBoxL1Cost):
    """A box cost of a user."""


@pytest.mark.parametrize('cost', [BBoxL1Cost, ScaledL1Cost])
@pytest.mark.parametrize(
    ('has_box', 'stuff_box_cost', 'query'), [(True, False, 1), (False, False, 0), (False, True, 1)]
)
def test_boxes_of_stuff_count_in_matching_only_if_switched_on(cost, has_box, stuff_box_cost, query):
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2]]])
    outputs = LayerOutputs(torch.zeros(1, 1, 2, 3), boxes[None], torch.zeros(1, 1, 2, 4), torch.zeros(1, 4, 8, 8))
    masks = torch.ones(1, 16, 16, dtype=torch.bool)
    corners = torch.tensor([[0.6, 0.6, 0.8, 0.8]]) * 16
    targets = MaskDINOTargets.of([torch.tensor([1])], [corners], masks, [int(has_box)])
    costs = MatchingCosts([cost(box_format='xywh')], 8, stuff_box_cost=stuff_box_cost)
    # Without any cost, all assignments are equal, and the first query is taken.
    assert assign(costs(outputs, targets), targets.objects.valid).tolist() == [[[query]]]


class OwnFocalCost(FocalLossCost):
    """A class cost of a user: called image by image."""


class OwnMaskCost(CrossEntropyLossCost):
    """A mask cost of a user."""


class OwnDiceCost(DiceCost):
    """A mask cost of a user."""


@pytest.mark.parametrize('naive', [True, False])
def test_costs_of_all_layers_equal_those_of_mmdet(naive):
    torch.manual_seed(3)
    layers, batch, queries, points = 3, 2, 6, 40
    outputs = LayerOutputs(
        torch.randn(layers, batch, queries, 5) * 3,
        torch.rand(layers, batch, queries, 4) / 2 + 0.2,
        torch.randn(layers, batch, queries, 4),
        torch.randn(batch, 4, 12, 16) * 3,
    )
    labels = [torch.tensor([1, 4, 2]), torch.tensor([3])]
    boxes = [torch.rand(len(one), 4).sort(1).values * 48 for one in labels]
    targets = MaskDINOTargets.of(labels, boxes, torch.rand(4, 48, 64) > 0.5)
    dice = {'pred_act': True, 'eps': 1.0, 'naive_dice': naive, 'weight': 2.0}
    found = []
    for kinds in (
        [FocalLossCost(weight=4.0), CrossEntropyLossCost(weight=5.0), DiceCost(**dice)],
        [OwnFocalCost(weight=4.0), OwnMaskCost(weight=5.0), OwnDiceCost(**dice)],
    ):
        torch.manual_seed(4)
        found.append(MatchingCosts(kinds, points, stuff_box_cost=False)(outputs, targets))
    for image, count in enumerate(targets.counts):
        torch.testing.assert_close(*(one[:, image, :, :count] for one in found))


def test_targets_of_label_maps_cover_the_padded_images():
    label_map = torch.full((6, 8), 255)
    label_map[2:4, 5:8] = 1
    label_map[0, 0] = 7  # not a class
    targets = targets_from_label_maps([label_map, label_map.clamp(max=2)], range(3), (8, 10))
    assert targets.counts == (1, 2)
    assert targets.objects.labels.tolist() == [[1, 0], [1, 2]]
    assert targets.has_box.tolist() == [[True, False], [True, True]]
    assert targets.masks.shape == (3, 8, 10)
    torch.testing.assert_close(targets.objects.boxes[0, 0], torch.tensor([0.65, 3 / 8, 0.3, 2 / 8]))
    assert targets.masks.sum((1, 2)).tolist() == [6, 6, 42]
    none = targets_from_label_maps([label_map], range(4, 6), (8, 10))
    assert none.counts == (0,)
    assert not none.has_box.any()


@pytest.mark.parametrize('kind', ['sum', 'mean', 'none'])
def test_iou_loss_equals_torchvision(kind):
    torch.manual_seed(5)
    boxes, others = (torch.rand(30, 4).unflatten(1, (2, 2)).sort(1).values.flatten(1) for _ in range(2))
    found, expected = boxes.clone().requires_grad_(), boxes.clone().requires_grad_()
    loss = UnitGIoULoss(2.0)(found, others, reduction_override=kind)
    reference = 2 * torchvision.ops.generalized_box_iou_loss(expected, others, reduction=kind, eps=1e-6)
    torch.testing.assert_close(loss, reference)
    loss.sum().backward()
    reference.sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_samples_in_a_graph_equal_those_of_a_cpu(monkeypatch):
    masks, index = torch.rand(3, 17, 23) > 0.5, torch.tensor([2, 0, 1, 2])
    points = torch.rand(4, 200, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.01, 0.5]])  # at borders
    expected = sample_masks(masks, index, points)
    monkeypatch.setattr(torch.compiler, 'is_compiling', lambda: True)
    torch.testing.assert_close(sample_masks(masks, index, points), expected, rtol=0, atol=1e-5)
