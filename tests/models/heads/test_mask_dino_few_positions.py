"""Images with fewer positions than MaskDINO has queries: training and prediction work, padding changes nothing."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

from mmitpn.models.heads import MaskDINODecodeHead, MaskDINOFusionHead
from mmitpn.models.mask_dino.core import CROSS_ENTROPY

PADDED = (32, 64)
# Of the strides 8, 16, 32 and the extra level of 64.
POSITIONS = 4 * 8 + 2 * 4 + 1 * 2 + 1
QUERIES = 60
SHAPES = {'no-padding': [PADDED, PADDED], 'one-small': [PADDED, (20, 24)], 'both-small': [(30, 20), (20, 24)]}


def pair(make_head, **settings):
    """A head with more queries than positions, and one with one query per position, with equal weights."""
    more, exact = (make_head(num_queries=number, **settings) for number in (QUERIES, POSITIONS))
    torch.manual_seed(4)
    for name, weight in more.named_parameters():
        if weight.dim() > 1 and name.startswith('predictor.'):
            torch.nn.init.normal_(weight, std=0.2)
    weights = more.state_dict()
    for name in weights.keys() & {'predictor.query_content.weight'}:
        weights[name] = weights[name][:POSITIONS]
    exact.load_state_dict(weights)
    return more, exact


def samples_of(make_sample, shapes, numbers=(2, 3), stuff=None):
    return [
        make_sample(number, stuff, shape=shape, padded=PADDED) for number, shape in zip(numbers, shapes, strict=True)
    ]


@pytest.mark.parametrize(
    ('settings', 'shapes'),
    [
        ({}, 'one-small'),
        ({'box_start': 'bitmask', 'released': True}, 'both-small'),
        ({'box_start': 'no', 'learn_queries': True, 'loss_cls': CROSS_ENTROPY}, 'one-small'),
        ({'denoising': {'kind': 'no'}}, 'no-padding'),
    ],
    ids=['default', 'released', 'learned-content', 'no-denoising'],
)
def test_losses_and_gradients_equal_those_of_one_query_per_position(
    make_head, make_maps, make_sample, settings, shapes
):
    outcomes = []
    for head in pair(make_head, **settings):
        torch.manual_seed(3)
        losses = head.train().loss(make_maps(PADDED), samples_of(make_sample, SHAPES[shapes]))
        sum(losses.values()).backward()
        outcomes.append((losses, {name: weight.grad for name, weight in head.named_parameters()}))
    (losses, gradients), (expected, expected_gradients) = outcomes
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        if name == 'predictor.query_content.weight':
            assert (gradient[POSITIONS:] == 0).all()
            gradient = gradient[:POSITIONS]
        # The projections before a GroupNorm of one or two cells have gradients of rounding errors only.
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-4 * largest, msg=name)


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
def test_every_layer_gives_every_position_once(make_head, make_maps, make_sample, shapes):
    samples = samples_of(make_sample, shapes)
    outcomes = []
    for head in pair(make_head):
        with torch.no_grad():
            outcomes.append(head.eval()(make_maps(PADDED), [sample.metainfo for sample in samples])[0])
    found, expected = outcomes
    assert found.selected.index.sort().values.tolist() == [list(range(POSITIONS))] * 2
    # All positions on padding have the same score, content and box: their order is arbitrary.
    best, expected_best = (one.selected.scores.gather(1, one.selected.index) for one in (found, expected))
    assert torch.equal(best, expected_best)
    for one, other in zip([found.encoder, *found.layers], [expected.encoder, *expected.layers], strict=True):
        assert one.logits.shape == (2, POSITIONS, 5)
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.masks(), other.masks(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.references, expected.references, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shapes', [SHAPES['no-padding'], SHAPES['one-small']], ids=['no-padding', 'one-small'])
def test_instances_segments_and_label_maps_have_no_padded_query(make_head, make_maps, make_sample, shapes):
    """If max_per_image allows all candidates, every position is returned once per thing class."""
    fusion = MaskDINOFusionHead(
        5, 2, test_cfg={'panoptic_on': True, 'semantic_on': True, 'max_per_image': 10 * QUERIES, 'object_mask_thr': 0.0}
    )
    samples = samples_of(make_sample, shapes)
    outcomes = []
    for head in pair(make_head, num_stuff_classes=2, box_start='no'):
        with torch.no_grad():
            outcomes.append(fusion.predict(head.eval().predict(make_maps(PADDED), samples), samples))
    for found, expected in zip(*outcomes, strict=True):
        instances, expected_instances = found['ins_results'], expected['ins_results']
        assert len(instances) == POSITIONS * 5
        scores, expected_scores = (one.scores.sort().values for one in (instances, expected_instances))
        torch.testing.assert_close(scores, expected_scores, rtol=1e-4, atol=1e-5)
        for name in ('pan_results', 'sem_results'):
            different = found[name].sem_seg != expected[name].sem_seg
            assert different.float().mean() < 0.01  # rounding on the border between two masks


@pytest.mark.parametrize('numbers', [(3, 0), (0, 0), (50, 1)], ids=lambda numbers: '-'.join(map(str, numbers)))
@pytest.mark.parametrize(
    ('loss', 'stuff'), [({}, None), ({'loss_cls': CROSS_ENTROPY}, (5, 6))], ids=['focal-instances', 'softmax-panoptic']
)
def test_any_number_of_objects_trains(make_head, make_maps, make_sample, numbers, loss, stuff):
    """Also more objects than positions, and images without objects."""
    head = make_head(num_queries=QUERIES, num_stuff_classes=2 if stuff else 0, **loss).train()
    losses = head.loss(make_maps(PADDED), samples_of(make_sample, SHAPES['one-small'], numbers, stuff))
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    for name, weight in head.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


@pytest.mark.parametrize('loss', [{}, {'loss_cls': CROSS_ENTROPY}], ids=['focal', 'softmax'])
def test_semantic_scores_equal_those_of_one_query_per_position(make_head, make_maps, loss):
    settings = {'cls': MaskDINODecodeHead, 'num_classes': 4, 'two_stage': True}
    focal = {} if loss else {'loss_cls': {'type': 'mmdet.FocalLoss', 'use_sigmoid': True, 'loss_weight': 4.0}}
    outcomes = []
    for head in pair(make_head, **settings, **(loss or focal)):
        with torch.no_grad():
            outcomes.append(head.eval().predict(make_maps(PADDED), [{'img_shape': PADDED}] * 2, {}))
    assert outcomes[0].shape == (2, 4, *PADDED)
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('two_stage', [True, False])
def test_a_decode_head_trains_on_a_window_with_fewer_positions_than_queries(make_head, make_maps, two_stage):
    head = make_head(MaskDINODecodeHead, num_classes=4, num_queries=QUERIES, two_stage=two_stage).train()
    targets = [head.targets_of(labels) for labels in (torch.randint(0, 4, PADDED), torch.full(PADDED, 255))]
    losses = head.core.loss_by_targets(make_maps(PADDED), [], targets)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(weight.grad.isfinite().all() for weight in head.parameters())
