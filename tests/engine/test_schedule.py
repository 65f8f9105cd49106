"""Learning rate, length, warmup and intervals of a config that is trained on other data."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, PolyLR

from mmitpn.engine.schedule import set_batch, set_length


def config(*, iterations: int | None = None, name: str = 'x_8xb2_y.py', **settings) -> Config:
    by_epoch = iterations is None
    length = {'max_epochs': 12} if by_epoch else {'max_iters': iterations}
    end = 12 if by_epoch else iterations
    return Config(
        {
            'train_dataloader': {'batch_size': 2},
            'optim_wrapper': {'optimizer': {'type': 'AdamW', 'lr': 1e-4}},
            'train_cfg': {'val_interval': 1 if by_epoch else iterations // 10, **length},
            'param_scheduler': [
                {'type': 'LinearLR', 'start_factor': 0.001, 'by_epoch': False, 'begin': 0, 'end': 500},
                {
                    'type': 'MultiStepLR' if by_epoch else 'PolyLR',
                    'by_epoch': by_epoch,
                    'begin': 0 if by_epoch else 500,
                    'end': end,
                    **({'milestones': [8, 11]} if by_epoch else {'eta_min': 1e-6}),
                },
            ],
            'default_hooks': {
                'logger': {'type': 'LoggerHook', 'interval': 50},
                'checkpoint': {'type': 'CheckpointHook', 'interval': 2 if by_epoch else 4000, 'by_epoch': by_epoch},
            },
            **settings,
        },
        cfg_text=' ',
        filename=name,  # is not read, as its text is given
    )


@pytest.mark.parametrize(
    ('settings', 'batch', 'expected', 'why'),
    [
        ({}, None, 1e-4 * 2 / 16, '8xb2 in the name'),
        ({'name': 'y_4xb4-40k_x-512x512.py'}, 8, 1e-4 / 2, '4xb4 in the name'),
        ({'auto_scale_lr': {'base_batch_size': 32}}, 4, 1e-4 / 8, 'auto_scale_lr'),
        ({'name': 'plain.py'}, 6, 3e-4, 'one process of the config'),
        ({'name': 'dino-4scale_512x512.py'}, 2, 1e-4, 'one process of the config'),
    ],
)
def test_the_learning_rate_follows_the_batch(settings, batch, expected, why):
    cfg = config(**settings)
    lines = set_batch(cfg, batch)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(expected)
    assert why in lines[-1]
    assert cfg.train_dataloader.batch_size == (batch or 2)


def test_processes_and_accumulated_batches_count(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '4')
    cfg = config(iterations=1000, launcher='pytorch')
    cfg.optim_wrapper.accumulative_counts = 2
    set_batch(cfg, 4)  # 4 images, 4 processes, 2 batches: 32 images a step, twice 16
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(2e-4)
    assert cfg.param_scheduler[1].eta_min == pytest.approx(2e-6)


def test_no_scaling_on_request():
    cfg = config()
    (line,) = set_batch(cfg, None, scale_lr=False)
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert 'the config is for 16' in line


@pytest.mark.parametrize('settings', [{}, {'auto_scale_lr': {'base_batch_size': 16}}])
def test_a_scaled_config_is_not_scaled_again(settings):
    cfg = config(**settings)
    set_batch(cfg, 4)
    assert cfg.auto_scale_lr.base_batch_size == 4
    set_batch(cfg, 4)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-4 / 4)


def test_epochs():
    cfg = config()
    lines = set_length(cfg, images=300, epochs=36)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (36, 3)
    assert cfg.param_scheduler[1].milestones == [24, 33]
    assert cfg.param_scheduler[1].end == 36
    assert cfg.param_scheduler[0].end == 500  # of 5400 iterations
    assert cfg.default_hooks.checkpoint.interval == 6
    assert lines[0].startswith('run: 36 epochs of 150 iterations of 300 images')
    assert 'param_scheduler[1].milestones: [8, 11] -> [24, 33]' in lines


def test_iterations():
    cfg = config(iterations=160_000)
    lines = set_length(cfg, images=301, epochs=10)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (1510, 151)
    warmup, decay = cfg.param_scheduler
    assert warmup.end == decay.begin == 5
    assert decay.end == 1510
    assert cfg.default_hooks.checkpoint.interval == 38
    assert lines[0].startswith('run: 1510 iterations, 10 epochs of 301 images')


def test_a_run_of_few_images_keeps_its_length_and_gets_a_warmup_and_logs_that_fit():
    cfg = config()
    set_length(cfg, images=20)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.param_scheduler[0].end == 12  # a tenth of 120 iterations
    assert cfg.default_hooks.logger.interval == 10  # an epoch
    cfg = config(iterations=100)
    set_length(cfg, images=20)
    assert (cfg.param_scheduler[0].end, cfg.param_scheduler[1].begin) == (10, 10)
    assert cfg.default_hooks.checkpoint.interval == 100
    assert cfg.default_hooks.logger.interval == 10


def test_the_shortest_warmup_reaches_the_learning_rate():
    cfg = config(iterations=160_000)
    set_length(cfg, images=6, epochs=2)
    assert cfg.train_cfg.max_iters == 6
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    kinds = {'LinearLR': LinearLR, 'PolyLR': PolyLR}
    built = [
        kinds[one.type](optimizer, **{key: value for key, value in one.items() if key != 'type'})
        for one in cfg.param_scheduler
    ]
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in built:
            scheduler.step()
    assert rates[0] == pytest.approx(0.001)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.5


def test_dynamic_intervals_and_hooks_that_count_epochs():
    cfg = config(custom_hooks=[{'type': 'PipelineSwitchHook', 'switch_epoch': 10}])
    cfg.train_cfg.dynamic_intervals = [(9, 1)]
    set_length(cfg, images=100, epochs=6)
    assert cfg.custom_hooks[0].switch_epoch == 5
    assert [list(pair) for pair in cfg.train_cfg.dynamic_intervals] == [[4, 1]]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda cfg: set_batch(cfg, 0), '--batch is 0; give an integer of at least 1'),
        (lambda cfg: set_length(cfg, 10, 0), '--epochs is 0; give an integer of at least 1'),
        (lambda cfg: (cfg.optim_wrapper.optimizer.pop('lr'), set_batch(cfg, 4)), 'has no lr.*--no-scale-lr'),
        (lambda cfg: (cfg.train_cfg.pop('max_epochs'), set_length(cfg, 10)), 'neither max_epochs nor max_iters'),
    ],
)
def test_what_cannot_be_set(change, message):
    with pytest.raises(ValueError, match=message):
        change(config())
