"""Images with fewer positions than DINO has queries: training and prediction work, padding changes nothing."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

pytest.importorskip('mmdet')

from dino_cases import batch, build, tiny_config, total
from mmdet.models.detectors import DINO as MMDetDINO  # noqa: N811 (mmitpn.DINO has the same name)

POSITIONS = 85  # of an image of 32 x 32 pixels: 64 + 16 + 4 + 1
QUERIES = 100
# A single image, and a large and a small one in one batch.
SHAPES = {'single': [(32, 32)], 'padded': [(32, 32), (20, 12)], 'both-padded': [(24, 32), (32, 9)]}


def config(queries, max_per_img=10):
    cfg = tiny_config(queries=queries)
    cfg.test_cfg.max_per_img = max_per_img
    return cfg


def pair(max_per_img=10):
    """A model with more queries than positions, and one with one query per position, with equal weights."""
    more = build(config(QUERIES, max_per_img))
    exact = build(config(POSITIONS, min(max_per_img, POSITIONS * 3)))
    # Fresh box branches give every layer the same boxes; here no two queries and no two layers are alike.
    for name, weight in more.named_parameters():
        if weight.dim() > 1 and not name.startswith(('backbone.', 'neck.')):
            weight.data.normal_(std=0.1)
    weights = more.state_dict()
    weights['query_embedding.weight'] = weights['query_embedding.weight'][:POSITIONS]
    exact.load_state_dict(weights)
    return more, exact


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
def test_losses_and_gradients_equal_those_of_one_query_per_position(shapes):
    images, samples = batch([2, 3][: len(shapes)], size=32, shapes=shapes)
    outcomes = []
    for model in pair():
        torch.manual_seed(3)
        losses = model.train()(images, samples, mode='loss')
        total(losses).backward()
        outcomes.append((losses, {name: weight.grad for name, weight in model.named_parameters()}))
    (losses, gradients), (expected, expected_gradients) = outcomes
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    unused = gradients['query_embedding.weight'][POSITIONS:]
    assert (unused == 0).all()
    gradients['query_embedding.weight'] = gradients['query_embedding.weight'][:POSITIONS]
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
def test_predictions_equal_those_of_one_query_per_position(shapes):
    images, samples = batch([0] * len(shapes), size=32, shapes=shapes)
    outcomes = []
    for model in pair(max_per_img=40):
        with torch.no_grad():
            results = model.eval()(images, deepcopy(samples), mode='predict')
            outcomes.append([one.pred_instances for one in results])
    for found, expected in zip(*outcomes, strict=True):
        assert len(found) == len(expected) == 40
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(found.labels, expected.labels)


def test_every_layer_gives_every_position_once():
    more, exact = pair()
    images, samples = batch([0, 0], size=32, shapes=SHAPES['padded'])
    with torch.no_grad():
        found, expected = (m.eval().forward_transformer(m.extract_feat(images), samples) for m in (more, exact))
    assert found['hidden_states'].shape == (2, 2, POSITIONS, 32)
    torch.testing.assert_close(found['hidden_states'], expected['hidden_states'], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found['references'], expected['references'], rtol=1e-4, atol=1e-5)


def test_padded_queries_are_never_returned():
    """max_per_img exceeds the candidates of the image: all of them are returned, without padded ones."""
    model, exact = pair(max_per_img=300)
    images, samples = batch([0, 0], size=32, shapes=SHAPES['padded'])
    with torch.no_grad():
        found = [one.pred_instances for one in model.eval()(images, deepcopy(samples), mode='predict')]
        expected = [one.pred_instances for one in exact.eval()(images, samples, mode='predict')]
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == POSITIONS * 3
        assert ours.scores.min() > 0
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('counts', [[3], [0], [0, 4], [0, 0], [9, 1]], ids=lambda counts: '-'.join(map(str, counts)))
@pytest.mark.parametrize('size', [5, 16, 32])
def test_any_number_of_objects_trains(counts, size):
    """Also more objects than positions (7, with 5 pixels), and images without objects."""
    model = build(config(QUERIES)).train()
    losses = model(*batch(counts, size=size), mode='loss')
    total(losses).backward()
    assert all(torch.isfinite(value).all() for value in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_softmax_head_returns_no_padded_query():
    cfg = config(QUERIES, max_per_img=QUERIES)
    cfg.bbox_head.loss_cls = {'type': 'CrossEntropyLoss', 'use_sigmoid': False, 'loss_weight': 1.0}
    model = build(cfg)
    images, samples = batch([2], size=32)
    assert torch.isfinite(total(model.train()(images, samples, mode='loss')))
    with torch.no_grad():
        found = model.eval()(images, samples, mode='predict')[0].pred_instances
    assert len(found) == POSITIONS
    assert found.scores.min() > 0


def test_recomputed_layers_and_autocast_are_padded_too():
    cfg = config(QUERIES)
    cfg.encoder.with_cp = cfg.decoder.with_cp = True
    model = build(cfg).train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(*batch([2, 1], size=32), mode='loss')
    total(losses).backward()
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('queries', [POSITIONS, 20])
def test_queries_are_selected_as_in_mmdet(training, queries):
    model = pair()[1] if queries == POSITIONS else build(config(queries))
    model.train(training)
    images, samples = batch([2, 1], size=32, shapes=SHAPES['padded'])
    inputs, _ = model.pre_transformer(model.extract_feat(images), samples)
    memory = model.forward_encoder(**inputs)
    torch.manual_seed(5)
    found = model.pre_decoder(**memory, batch_data_samples=samples)
    torch.manual_seed(5)
    expected = MMDetDINO.pre_decoder(model, **memory, batch_data_samples=samples)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[name]), name
            else:
                assert value == theirs[name]
