"""What the model draws at random, the same again in a resumed run."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmitpn.registry import HOOKS
from mmitpn.seeding import seed_generators


@HOOKS.register_module()
class SeedStepHook(Hook):
    """Seeds all generators before every training step, from the run's seed, the iteration and the process.

    Masks, stochastic depth and sampled points of an iteration are then the same whether the run was resumed or not. For
    the data see :class:`mmitpn.datasets.SeededDataset`.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed.

        Args:
            runner: The runner of the training process.
            batch_idx: Not used.
            data_batch: Not used.
        """
        del batch_idx, data_batch
        seed_generators(runner.seed, runner.iter, get_rank())
