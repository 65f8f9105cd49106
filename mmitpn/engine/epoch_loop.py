"""An epoch-based training loop that goes on within an epoch."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop

from mmitpn.registry import LOOPS


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop``; a checkpoint made within an epoch is gone on from at its next batch.

    The batches before it are left out without being loaded: the data loader needs the batch sampler
    ``mmitpn.SkippingBatchSampler`` (``tools/train.py`` puts both into a config). mmengine begins the epoch again, with
    the count of iterations of its middle.
    """

    def run_epoch(self) -> None:
        """Train for what is left of the epoch."""
        done = self._iter - self._epoch * len(self.dataloader)
        if not 0 <= done <= len(self.dataloader):
            print_log(
                f'iteration {self._iter} is not in epoch {self._epoch + 1} of {len(self.dataloader)} batches each: the'
                ' checkpoint is of another number of processes or another batch size; the epoch begins again',
                'current',
                logging.WARNING,
            )
            done = 0
        if done:
            self.dataloader.batch_sampler.skip(done)
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
