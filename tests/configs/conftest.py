"""What the tests of the configs share: a run of one training and one validation iteration."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner


def run_once(cfg: Config, folder) -> Runner:
    """Trains one iteration or epoch of a config and validates once; writes no checkpoint, which may take several GB."""
    cfg.work_dir, cfg.experiment_name = str(folder), folder.name
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=1, val_interval=1)
    else:
        cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    finally:
        DefaultScope._instance_dict.clear()
    assert runner.iter == 1
    return runner


@pytest.fixture(name='run_once')
def run_once_fixture():
    return run_once
