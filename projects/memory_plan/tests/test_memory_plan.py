"""The sums of an estimate, recorded steps, and the extrapolation from small steps."""

from __future__ import annotations

import pytest
import torch
from memory_plan.budget import estimate, estimate_all, estimate_table, verdict
from memory_plan.model_states import ModelStates, model_states, shard_units
from memory_plan.timeline import MemoryTimeline, StepSize, choose_sizes, predict_step, record_step
from mmengine.config import ConfigDict
from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmitpn import FastITPN

MB = 2**20


def training(optimizer: dict, **more: object) -> ConfigDict:
    return ConfigDict(optim_wrapper={'type': 'OptimWrapper', 'optimizer': optimizer, **more})


def states_of(model: nn.Module, **optimizer: object) -> ModelStates:
    return model_states(model, training({'type': 'AdamW', 'lr': 1e-3, **optimizer}))


def timeline(**changes: object) -> MemoryTimeline:
    figures = {
        'activations': 100,
        'forward': 110,
        'names': ('weight', 'bias'),
        'backward': (105, 40, 0),
        'remaining': 5,
    }
    return MemoryTimeline(**{**figures, 'names': ('weight', 'bias'), 'blocks': {}, **changes})


# --- states of the model --------------------------------------------------------------------------------------------


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
def test_states_are_those_of_the_optimizer(optimizer: dict, copies: int) -> None:
    states = model_states(nn.Linear(100, 200), training(optimizer))
    assert states.trainable == 4 * (100 * 200 + 200)
    assert states.states == pytest.approx(copies * states.trainable, abs=8)  # Adam has a step count per parameter
    assert (states.step_foreach == 0) == bool(optimizer.get('fused'))


def test_frozen_parts_have_neither_gradients_nor_states() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False), nn.BatchNorm1d(10))
    model[0].requires_grad_(False)
    states = states_of(model)
    assert (states.frozen, states.trainable) == (400, 400 + 80)
    assert set(states.gradients) == {'1.weight', '2.weight', '2.bias'}
    assert states.buffers == 10 * 4 * 2 + 8
    assert states.states == pytest.approx(2 * states.trainable, abs=3 * 4)


def test_settings_of_the_config_count() -> None:
    cfg = training({'type': 'SGD', 'lr': 1.0}, accumulative_counts=4)
    cfg.custom_hooks = [{'type': 'EMAHook'}]
    cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', 'gradient_as_bucket_view': True}
    states = model_states(nn.Linear(10, 10), cfg)
    assert states.keeps_gradients
    assert states.bucket_view
    assert states.averaged == states.trainable
    step = timeline(activations=1000, forward=1010, backward=(0, 0, 0))
    assert estimate(states, step, gpus=2).exchange == 0
    assert estimate(states, step).total == 2 * 440 + 1010 + 440  # with the accumulated gradients


def test_types_of_a_pure_python_config() -> None:
    optimizer = {'type': torch.optim.AdamW, 'lr': 1e-3}
    cfg = ConfigDict(optim_wrapper={'type': OptimWrapper, 'optimizer': optimizer}, custom_hooks=[{'type': EMAHook}])
    states = model_states(nn.Linear(10, 10), cfg)
    assert (states.optimizer, states.averaged) == ('AdamW', 440)


def test_units_to_shard_are_blocks_and_layers() -> None:
    class EncoderLayer(nn.Sequential):
        pass

    model = nn.Module()
    model.stem = nn.Linear(4, 4)
    model.layers = nn.ModuleList(EncoderLayer(nn.Linear(4, 4), EncoderLayer(nn.Linear(4, 4))) for _ in range(3))
    assert list(shard_units(model)) == ['layers.0', 'layers.1', 'layers.2']
    assert {'stage1.0', 'blocks.0'} <= set(shard_units(FastITPN('nano')))
    states = states_of(model)
    assert states.root == 4 * 20
    assert states.largest_unit == 4 * 40


def test_a_config_without_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match='no `optim_wrapper`'):
        model_states(nn.Linear(2, 2), ConfigDict())


# --- sums ------------------------------------------------------------------------------------------------------------


EARLY = {'activations': 900, 'forward': 910, 'backward': (930, 500, 0)}  # before the first gradient
LATE = {'backward': (105, 40, 300)}  # after the last one
SMALL = {'activations': 3, 'forward': 3, 'backward': (3, 3, 3)}  # the optimizer's step, with the 5 bytes that remain


@pytest.mark.parametrize(
    ('changes', 'how', 'moment', 'rows'),
    [
        # parameters, gradients, exchange, activations, temporaries, not at the same time
        (EARLY, {}, 'backward', (440, 440, 0, 900, 30, -440)),
        (LATE, {}, 'backward', (440, 440, 0, 100, 200, 0)),
        (SMALL, {}, 'optimizer', (440, 440, 0, 3, 5, -3)),
        (EARLY, {'gpus': 8}, 'backward', (440, 440, 440, 900, 30, -440)),
        (LATE, {'gpus': 8, 'sharded': True}, 'backward', (55, 55, 880, 100, 200, 0)),
        (SMALL, {'gpus': 8, 'sharded': True}, 'optimizer', (55, 55, 880, 3, 5, -3)),
    ],
    ids=['early', 'late', 'small', 'early-ddp', 'late-fsdp', 'small-fsdp'],
)
def test_rows_of_the_peak(changes: dict, how: dict, moment: str, rows: tuple[int, ...]) -> None:
    states = states_of(nn.Linear(10, 10), fused=True)  # 440 bytes of parameters
    budget = estimate(states, timeline(**changes), overhead=7, **how)
    optimizer = states.states // 8 if how.get('sharded') else states.states
    assert budget.moment == moment
    assert (budget.states, budget.overhead) == (optimizer, 7)
    found = (budget.parameters, budget.gradients, budget.exchange, budget.activations, budget.temporaries)
    assert (*found, budget.not_at_once) == rows
    assert budget.total == sum(rows) + optimizer + 7


def test_sharding_divides_and_gathers() -> None:
    states = states_of(nn.Linear(100, 100, bias=False))
    step = timeline(names=('weight',), backward=(105, 0))
    whole, one = estimate(states, step), estimate(states, step, sharded=True)
    assert (one.total, one.exchange) == (whole.total, 0)
    assert estimate(states, step, gpus=4).exchange == states.trainable
    quarter = estimate(states, step, gpus=4, sharded=True)
    for row in ('parameters', 'gradients', 'states'):
        assert getattr(quarter, row) == getattr(whole, row) // 4
    assert quarter.exchange == 2 * states.trainable  # it has no unit: all of it is gathered, with its gradients
    assert quarter.activations == whole.activations


def test_columns_and_verdicts() -> None:
    states = states_of(nn.Linear(10, 10))
    steps = {'none': timeline(), 'all': timeline(activations=10)}
    assert [(b.checkpointing, b.sharded) for b in estimate_all(states, steps)] == [('none', False), ('all', False)]
    budgets = estimate_all(states, steps, gpus=8, overhead=3 * 10**9)
    assert [(b.checkpointing, b.sharded) for b in budgets] == [(w, s) for s in (False, True) for w in ('none', 'all')]
    assert len(estimate_table(budgets, '').columns) == 5
    assert verdict(budgets[0], 80) == 'no checkpointing, DDP 8: fits 80 GB with 77.0 GB to spare'
    assert verdict(budgets[3], 2) == 'checkpointing, FSDP 8: does not fit 2 GB, 1.0 GB are missing'
    with pytest.raises(ValueError, match='gpus is 0'):
        estimate(states, steps['none'], gpus=0)


# --- recorded steps --------------------------------------------------------------------------------------------------


def test_a_step_is_recorded_from_the_images_to_the_last_gradient() -> None:
    layer = nn.Linear(256, 1024, bias=False)  # 1 MB
    last = nn.Linear(1024, 256, bias=False)
    model = nn.Sequential(layer, nn.ReLU(), last)

    def loss() -> Tensor:
        return model(torch.rand(1024, 256)).sum()  # 1 MB, 4 MB, 4 MB, 1 MB

    step = record_step(model, loss)
    assert step.activations == pytest.approx(5 * MB, rel=0.01)  # images and the output of the ReLU
    assert step.forward == pytest.approx(9 * MB, rel=0.01)
    assert step.names == ('2.weight', '0.weight')
    assert step.remaining == pytest.approx(0, abs=0.01 * MB)
    checkpointed = record_step(model, lambda: checkpoint(model, torch.rand(1024, 256), use_reentrant=False).sum())
    assert checkpointed.activations == pytest.approx(MB, rel=0.01)
    assert max(checkpointed.backward) >= 9 * MB


def test_a_loss_without_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match='one number with a gradient'):
        record_step(nn.Linear(2, 2), lambda: torch.zeros(()))


# --- extrapolation ---------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A backbone under a loss; with ``scores``, attention scores between all positions."""

    def __init__(self, *, with_cp: bool = False, scores: bool = False) -> None:
        super().__init__()
        self.backbone = FastITPN('nano', with_cp=with_cp)
        self.scores = scores

    def loss(self, size: StepSize) -> Tensor:
        maps = self.backbone(torch.rand(size.batch, 3, *size.size))
        last = maps[1 if self.scores else -1].flatten(2)
        return (last.transpose(1, 2) @ last).softmax(-1).square().mean() if self.scores else last.square().mean()


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('target', [StepSize((416, 448), 3), StepSize((224, 200), 6)])
def test_a_larger_step_is_as_predicted(target: StepSize, *, with_cp: bool) -> None:
    net = Net(with_cp=with_cp).train()
    sizes = choose_sizes(target)
    assert target not in sizes
    timelines = {size: record_step(net, lambda size=size: net.loss(size)) for size in sizes}
    prediction = predict_step(timelines, target)
    measured = record_step(net, lambda: net.loss(target))
    assert not prediction.quadratic
    assert prediction.misfit < 0.02
    assert prediction.timeline.activations == pytest.approx(measured.activations, rel=0.02)
    assert prediction.timeline.forward == pytest.approx(measured.forward, rel=0.05)
    assert max(prediction.timeline.backward) == pytest.approx(max(measured.backward), rel=0.05)


def test_growth_with_pixels_squared_is_found() -> None:
    net = Net(scores=True).train()
    target = StepSize((512, 512), 1)
    timelines = {size: record_step(net, lambda size=size: net.loss(size)) for size in choose_sizes(target)}
    prediction = predict_step(timelines, target)
    assert prediction.quadratic
    measured = record_step(net, lambda: net.loss(target))
    assert prediction.timeline.activations == pytest.approx(measured.activations, rel=0.03)


def test_sizes_of_the_steps() -> None:
    assert [size.size[0] for size in choose_sizes(StepSize((1333, 800), 2))] == [128, 192, 256, 128]
    assert {size.batch for size in choose_sizes(StepSize((1333, 800), 2), least_batch=2)} == {2, 3}
    assert choose_sizes(StepSize((224, 224), 16)) == tuple(StepSize((224, 224), batch) for batch in (1, 2, 4))
    assert choose_sizes(StepSize((224, 224), 1), least_batch=2) == (StepSize((224, 224), 1),)
    assert StepSize((1333, 800), 1).pixels == 1344 * 800
