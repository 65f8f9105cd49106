"""MaskDINO as a detector: one graph in a prediction, two in a training step, whatever the numbers of objects."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch._dynamo.utils import counters

from mmitpn.engine.compile import compile_model
from mmitpn.models.detectors import MaskDINO
from mmitpn.models.mask_dino import MaskDINOCriterion
from mmitpn.models.mask_dino.matching import MatchingCosts

# Neither square nor with a side of the other: torch would make a graph for equal numbers.
SIZES = [((64, 80), (48, 60)), ((96, 112), (96, 90))]


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_model():
    torch.manual_seed(1)
    small = {'num_layers': 1, 'num_heads': 4, 'feedforward_channels': 32}
    model = MaskDINO(
        backbone={'type': 'mmitpn.FastITPN', 'arch': 'nano'},
        neck={'type': 'mmitpn.ITPNPyramid', 'in_channels': (48, 96, 192), 'out_channels': 32, 'num_outs': 4},
        panoptic_head={
            'type': 'mmitpn.MaskDINOHead',
            'in_channels': (32,) * 4,
            'feat_channels': 32,
            'out_channels': 16,
            'num_queries': 20,
            'num_things_classes': 5,
            'pixel_decoder': {**small, 'num_levels': 3},
            'decoder': small,
        },
        train_cfg={'num_points': 64},
    )
    torch.manual_seed(2)
    for weight in model.panoptic_head.predictor.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def batch(padded, shape, numbers=(0, 0)):
    """Two images, the second one smaller, with these numbers of objects."""
    rng = np.random.default_rng(3)
    samples = []
    for size, number in zip((padded, shape), numbers, strict=True):
        meta = {'img_shape': size, 'batch_input_shape': padded, 'ori_shape': size, 'scale_factor': (1.0, 1.0)}
        sample = DetDataSample(metainfo=meta)
        corners = rng.integers(0, 24, (number, 2))
        boxes = np.concatenate((corners, corners + rng.integers(8, 20, (number, 2))), 1)
        masks = np.zeros((number, *size), np.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0:x1] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4),
            labels=torch.as_tensor(rng.integers(0, 5, number)),
            masks=BitmapMasks(masks, *size),
        )
        samples.append(sample)
    return torch.randn(2, 3, *padded, generator=torch.Generator().manual_seed(4)), samples


@pytest.mark.usefixtures('fresh')
@pytest.mark.parametrize('dynamic', [None, pytest.param(True, marks=pytest.mark.thorough)], ids=['static', 'dynamic'])
def test_a_prediction_is_one_graph(dynamic):
    model = make_model().eval()
    compiled = deepcopy(model)
    assert compile_model(compiled, backend='aot_eager', fullgraph=True, dynamic=dynamic)[0] == 'forward_tensors'
    for sizes in SIZES if dynamic else SIZES[:1]:
        images, samples = batch(*sizes)
        with torch.no_grad():
            expected, found = (one(images, deepcopy(samples), mode='predict') for one in (model, compiled))
        for one, other in zip(found, expected, strict=True):
            one, other = one.pred_instances, other.pred_instances
            torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-3)
            assert (one.masks != other.masks).float().mean() < 1e-3
    assert counters['stats']['unique_graphs'] == 1


@pytest.mark.thorough
@pytest.mark.usefixtures('fresh')
def test_a_training_step_is_two_graphs_around_the_matching(monkeypatch):
    # The same points for all masks: a graph draws those of padding too, and of all masks of a layer at once.
    points = torch.rand(1, 64, 2)
    monkeypatch.setattr(MaskDINOCriterion, '_sample_points', lambda _, masks: points.expand(len(masks), -1, -1))
    monkeypatch.setattr(
        MatchingCosts,
        'draw_points',
        lambda _, layers, images, __: points.expand(layers * images, -1, -1).unflatten(0, (layers, images)),
    )
    model = make_model().train()
    compiled = deepcopy(model)
    compile_model(compiled, backend='aot_eager', dynamic=True)
    for numbers in ((3, 3), (2, 5)):
        outcomes = []
        for one in (model, compiled):
            one.zero_grad()
            torch.manual_seed(0)
            losses = one(*batch(*SIZES[0], numbers), mode='loss')
            sum(losses.values()).backward()
            outcomes.append((losses, {name: weight.grad for name, weight in one.named_parameters()}))
        (expected, gradients), (found, found_gradients) = outcomes
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for name, gradient in found_gradients.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-4 * largest, msg=name)
        # Two graphs, and two more for other numbers of groups of denoising queries.
        assert counters['stats']['unique_graphs'] == (2 if numbers == (3, 3) else 4)
    (reason,) = counters['graph_break']
    assert 'function assign' in reason
