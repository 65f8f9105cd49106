"""``torch.compile`` of whole models: one graph, equal results, and two around the matching of a training step."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')

from torch._dynamo.utils import counters

from mmitpn.engine import compile as engine_compile
from mmitpn.engine.compile import compile_model

sys.path.append(str(Path(__file__).parents[1] / 'models' / 'detectors'))

from dino_cases import batch, build, tiny_config, total

SIZES = [(64, [(64, 64), (48, 60)]), (96, [(80, 96), (96, 96)])]


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_dino(layers=1):
    return build(tiny_config(layers=layers))


@pytest.mark.usefixtures('fresh')
@pytest.mark.parametrize('dynamic', [None, pytest.param(True, marks=pytest.mark.thorough)], ids=['static', 'dynamic'])
def test_a_prediction_of_dino_is_one_graph(dynamic):
    model = make_dino().eval()
    compiled = deepcopy(model)
    assert compile_model(compiled, backend='aot_eager', fullgraph=True, dynamic=dynamic)[0] == 'forward_tensors'
    for size, shapes in SIZES if dynamic else SIZES[:1]:
        images, samples = batch([0, 0], size=size, shapes=shapes)
        with torch.no_grad():
            expected, found = (one(images, deepcopy(samples), mode='predict') for one in (model, compiled))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.pred_instances.scores, other.pred_instances.scores, rtol=0, atol=1e-5)
            torch.testing.assert_close(one.pred_instances.bboxes, other.pred_instances.bboxes, rtol=1e-5, atol=1e-3)
    assert counters['stats']['unique_graphs'] == 1


@pytest.mark.slow
@pytest.mark.usefixtures('fresh')
def test_a_training_step_of_dino_is_two_graphs_around_the_matching():
    model = make_dino().train()
    compiled = deepcopy(model)
    compile_model(compiled, backend='aot_eager')
    outcomes = []
    for one in (model, compiled):
        torch.manual_seed(0)
        loss = total(one(*batch([2, 3], shapes=[(64, 64), (48, 60)]), mode='loss'))
        loss.backward()
        outcomes.append((loss.detach(), {name: weight.grad for name, weight in one.named_parameters()}))
    (expected, gradients), (found, found_gradients) = outcomes
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in found_gradients.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-3, atol=1e-5 * float(largest), msg=name)
    assert counters['stats']['unique_graphs'] == 2
    (reason,) = counters['graph_break']
    assert 'function assign' in reason


@pytest.mark.usefixtures('fresh')
def test_a_copy_calls_its_own_weights():
    model = make_dino().eval()
    compile_model(model, backend='eager')
    average = deepcopy(model)
    for weight in average.parameters():
        weight.data.zero_()
    assert average.forward_tensors.__self__ is average
    assert model.state_dict().keys() == make_dino().state_dict().keys()


def test_parts_of_other_models_are_compiled():
    model = torch.nn.Module()
    model.backbone, model.neck = torch.nn.Linear(2, 3), torch.nn.Linear(3, 4)
    assert compile_model(model, backend='eager') == ['backbone.forward', 'neck.forward']
    assert model.neck(model.backbone(torch.ones(1, 2))).shape == (1, 4)


def test_what_cannot_be_compiled_raises(monkeypatch):
    with pytest.raises(ValueError, match="compile mode is 'fast'; allowed: default"):
        compile_model(make_dino(), mode='fast')
    with pytest.raises(ValueError, match='Linear has nothing to compile'):
        compile_model(torch.nn.Linear(1, 1), backend='eager')
    monkeypatch.setattr(engine_compile.shutil, 'which', lambda _: None)
    with pytest.raises(ValueError, match=r'compiling for cpu needs a C\+\+ compiler .*apt-get install g\+\+'):
        compile_model(make_dino())
