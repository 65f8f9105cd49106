"""Memory of a training on paper: what adds up, what is divided, and what is carried on from small steps."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmitpn import FastITPN
from mmitpn.analysis.memory_fit import Point, choose_points, predict_step
from mmitpn.analysis.memory_plan import plan, plan_table, plans, verdict
from mmitpn.analysis.model_facts import ModelFacts, model_facts, shard_units
from mmitpn.analysis.step_trace import StepTrace, trace_step

MB = 2**20


def training(optimizer: dict, **more: object) -> ConfigDict:
    return ConfigDict(optim_wrapper={'type': 'OptimWrapper', 'optimizer': optimizer, **more})


def facts_of(model: nn.Module, **optimizer: object) -> ModelFacts:
    return model_facts(model, training({'type': 'AdamW', 'lr': 1e-3, **optimizer}))


def made_trace(**changes: object) -> StepTrace:
    figures = {'held': 100, 'forward': 110, 'names': ('weight', 'bias'), 'backward': (105, 40, 0), 'left': 5}
    return StepTrace(**{**figures, 'blocks': {}, **changes})


# --- what the model holds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('optimizer', 'copies'),
    [
        ({'type': 'AdamW', 'lr': 1e-3}, 2),
        ({'type': 'AdamW', 'lr': 1e-3, 'fused': True}, 2),
        ({'type': 'AdamW', 'lr': 1e-3, 'amsgrad': True}, 3),
        ({'type': 'SGD', 'lr': 1e-3, 'momentum': 0.9, 'weight_decay': 1e-4}, 1),
        ({'type': 'SGD', 'lr': 1e-3}, 0),
    ],
)
def test_states_are_those_of_the_optimiser(optimizer: dict, copies: int) -> None:
    facts = model_facts(nn.Linear(100, 200), training(optimizer))
    assert facts.trainable == 4 * (100 * 200 + 200)
    assert facts.states == pytest.approx(copies * facts.trainable, abs=8)  # Adam counts its steps in a number each
    assert (facts.step_foreach == 0) == bool(optimizer.get('fused'))


def test_frozen_parts_have_neither_gradients_nor_states() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False), nn.BatchNorm1d(10))
    model[0].requires_grad_(False)
    facts = facts_of(model)
    assert (facts.frozen, facts.trainable) == (400, 400 + 80)
    assert set(facts.gradients) == {'1.weight', '2.weight', '2.bias'}
    assert facts.buffers == 10 * 4 * 2 + 8
    assert facts.states == pytest.approx(2 * facts.trainable, abs=3 * 4)


def test_settings_of_the_config_are_heeded() -> None:
    cfg = training({'type': 'SGD', 'lr': 1.0}, accumulative_counts=4)
    cfg.custom_hooks = [{'type': 'EMAHook'}]
    cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', 'gradient_as_bucket_view': True}
    facts = model_facts(nn.Linear(10, 10), cfg)
    assert facts.keeps_gradients
    assert facts.bucket_view
    assert facts.averaged == facts.trainable
    trace = made_trace(held=1000, forward=1010, backward=(0, 0, 0))
    assert plan(facts, trace, gpus=2).exchange == 0
    assert plan(facts, trace).total == 2 * 440 + 1010 + 440  # the gradients of the steps before are there


def test_units_to_shard_are_blocks_and_layers() -> None:
    class EncoderLayer(nn.Sequential):
        pass

    model = nn.Module()
    model.stem = nn.Linear(4, 4)
    model.layers = nn.ModuleList(EncoderLayer(nn.Linear(4, 4), EncoderLayer(nn.Linear(4, 4))) for _ in range(3))
    assert list(shard_units(model)) == ['layers.0', 'layers.1', 'layers.2']
    assert {'stage1.0', 'blocks.0'} <= set(shard_units(FastITPN('nano')))
    facts = facts_of(model)
    assert facts.root == 4 * 20
    assert facts.largest_unit == 4 * 40


def test_a_config_without_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match='no `optim_wrapper`'):
        model_facts(nn.Linear(2, 2), ConfigDict())


# --- what adds up --------------------------------------------------------------------------------------------------


EARLY = {'held': 900, 'forward': 910, 'backward': (930, 500, 0)}  # before there is any gradient
LATE = {'backward': (105, 40, 300)}  # when there are all of them
SMALL = {'held': 3, 'forward': 3, 'backward': (3, 3, 3)}  # the optimizer's step, which needs the 5 that are left


@pytest.mark.parametrize(
    ('trace', 'how', 'moment', 'rows'),
    [
        # parameters, gradients, exchange, activations, temporaries, not at the same time
        (EARLY, {}, 'backward', (440, 440, 0, 900, 30, -440)),
        (LATE, {}, 'backward', (440, 440, 0, 100, 200, 0)),
        (SMALL, {}, 'optimiser', (440, 440, 0, 3, 5, -3)),
        (EARLY, {'gpus': 8}, 'backward', (440, 440, 440, 900, 30, -440)),
        (LATE, {'gpus': 8, 'sharded': True}, 'backward', (55, 55, 880, 100, 200, 0)),
        (SMALL, {'gpus': 8, 'sharded': True}, 'optimiser', (55, 55, 880, 3, 5, -3)),
    ],
    ids=['early', 'late', 'small', 'early-ddp', 'late-fsdp', 'small-fsdp'],
)
def test_rows_of_the_fullest_moment(trace: dict, how: dict, moment: str, rows: tuple[int, ...]) -> None:
    facts = facts_of(nn.Linear(10, 10), fused=True)  # 440 bytes of parameters
    budget = plan(facts, made_trace(**trace), overhead=7, **how)
    states = facts.states // 8 if how.get('sharded') else facts.states
    assert budget.moment == moment
    assert (budget.states, budget.overhead) == (states, 7)
    found = (budget.parameters, budget.gradients, budget.exchange, budget.activations, budget.temporaries)
    assert (*found, budget.not_at_once) == rows
    assert budget.total == sum(rows) + states + 7


def test_sharding_divides_and_gathers() -> None:
    facts = facts_of(nn.Linear(100, 100, bias=False))
    trace = made_trace(names=('weight',), backward=(105, 0))
    whole, one = plan(facts, trace), plan(facts, trace, sharded=True)
    assert (one.total, one.exchange) == (whole.total, 0)
    assert plan(facts, trace, gpus=4).exchange == facts.trainable
    quarter = plan(facts, trace, gpus=4, sharded=True)
    for row in ('parameters', 'gradients', 'states'):
        assert getattr(quarter, row) == getattr(whole, row) // 4
    assert quarter.exchange == 2 * facts.trainable  # no layer in it: all of it is gathered, with its gradients
    assert quarter.activations == whole.activations


def test_columns_and_verdicts() -> None:
    facts = facts_of(nn.Linear(10, 10))
    traces = {'none': made_trace(), 'all': made_trace(held=10)}
    assert [(b.checkpointing, b.sharded) for b in plans(facts, traces)] == [('none', False), ('all', False)]
    budgets = plans(facts, traces, gpus=8, overhead=3 * 10**9)
    assert [(b.checkpointing, b.sharded) for b in budgets] == [(w, s) for s in (False, True) for w in ('none', 'all')]
    assert len(plan_table(budgets, '').columns) == 5
    assert verdict(budgets[0], 80) == 'no checkpointing, DDP 8: fits 80 GB with 77.0 GB to spare'
    assert verdict(budgets[3], 2) == 'checkpointing, FSDP 8: does not fit 2 GB, 1.0 GB are missing'
    with pytest.raises(ValueError, match='gpus is 0'):
        plan(facts, traces['none'], gpus=0)


# --- what a step holds ---------------------------------------------------------------------------------------------


def test_a_step_is_seen_from_the_pictures_to_the_last_gradient() -> None:
    layer = nn.Linear(256, 1024, bias=False)  # 1 MB
    last = nn.Linear(1024, 256, bias=False)
    model = nn.Sequential(layer, nn.ReLU(), last)

    def loss() -> Tensor:
        return model(torch.rand(1024, 256)).sum()  # 1 MB, 4 MB, 4 MB, 1 MB

    trace = trace_step(model, loss)
    assert trace.held == pytest.approx(5 * MB, rel=0.01)  # pictures and what the ReLU gave
    assert trace.forward == pytest.approx(9 * MB, rel=0.01)
    assert trace.names == ('2.weight', '0.weight')
    assert trace.left == pytest.approx(0, abs=0.01 * MB)
    checkpointed = trace_step(model, lambda: checkpoint(model, torch.rand(1024, 256), use_reentrant=False).sum())
    assert checkpointed.held == pytest.approx(MB, rel=0.01)
    assert max(checkpointed.backward) >= 9 * MB


def test_a_loss_without_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match='one number with a gradient'):
        trace_step(nn.Linear(2, 2), lambda: torch.zeros(()))


# --- what is carried on --------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A backbone under a loss, or scores between all places where ``scores``."""

    def __init__(self, *, with_cp: bool = False, scores: bool = False) -> None:
        super().__init__()
        self.backbone = FastITPN('nano', with_cp=with_cp)
        self.scores = scores

    def loss(self, point: Point) -> Tensor:
        maps = self.backbone(torch.rand(point.batch, 3, *point.size))
        last = maps[1 if self.scores else -1].flatten(2)
        return (last.transpose(1, 2) @ last).softmax(-1).square().mean() if self.scores else last.square().mean()


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('target', [Point((416, 448), 3), Point((224, 200), 6)])
def test_a_larger_step_is_as_predicted(target: Point, *, with_cp: bool) -> None:
    net = Net(with_cp=with_cp).train()
    points = choose_points(target)
    assert target not in points
    traces = {point: trace_step(net, lambda point=point: net.loss(point)) for point in points}
    prediction = predict_step(traces, target)
    measured = trace_step(net, lambda: net.loss(target))
    assert not prediction.quadratic
    assert prediction.misfit < 0.02
    assert prediction.trace.held == pytest.approx(measured.held, rel=0.02)
    assert prediction.trace.forward == pytest.approx(measured.forward, rel=0.05)
    assert max(prediction.trace.backward) == pytest.approx(max(measured.backward), rel=0.05)


def test_what_grows_with_pixels_squared_is_seen() -> None:
    net = Net(scores=True).train()
    target = Point((512, 512), 1)
    traces = {point: trace_step(net, lambda point=point: net.loss(point)) for point in choose_points(target)}
    prediction = predict_step(traces, target)
    assert prediction.quadratic
    measured = trace_step(net, lambda: net.loss(target))
    assert prediction.trace.held == pytest.approx(measured.held, rel=0.03)


def test_which_steps_are_run() -> None:
    assert [point.size[0] for point in choose_points(Point((1333, 800), 2))] == [128, 192, 256, 128]
    assert {point.batch for point in choose_points(Point((1333, 800), 2), least_batch=2)} == {2, 3}
    assert choose_points(Point((224, 224), 16)) == tuple(Point((224, 224), batch) for batch in (1, 2, 4))
    assert choose_points(Point((224, 224), 1), least_batch=2) == (Point((224, 224), 1),)
    assert Point((1333, 800), 1).pixels == 1344 * 800
