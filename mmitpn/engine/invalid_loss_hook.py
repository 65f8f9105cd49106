"""Stops a training whose loss is no number, before anything is saved."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmitpn.registry import HOOKS


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Raises FloatingPointError as soon as a loss is NaN or infinite, with the iteration and the pictures.

    It runs before the checkpoint hook: the last checkpoint in the work dir is from before.

    Args:
        interval: Iterations between two looks; each waits for the device.
    """

    priority = 'VERY_HIGH'

    def __init__(self, interval: int = 1) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval is {interval!r}; give a whole number of iterations of at least 1')
        self.interval = interval

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Look at the losses.

        Args:
            runner: The runner of the training process.
            batch_idx: Not used.
            data_batch: The batch, for the names of its pictures.
            outputs: The losses by name.

        Raises:
            FloatingPointError: If one is not finite.
        """
        del batch_idx
        if not self.every_n_train_iters(runner, self.interval) or not outputs:
            return
        if isfinite(float(torch.as_tensor(outputs.get('loss', nan)).detach())):  # the sum of all
            return
        bad = {
            name: value.item()
            for name, value in outputs.items()
            if isinstance(value, torch.Tensor) and 'loss' in name and not bool(torch.isfinite(value).all())
        }
        if len(bad) > 1:
            bad.pop('loss', None)  # the sum says nothing more
        if bad:
            said = ', '.join(f'{name} is {value}' for name, value in bad.items())
            raise FloatingPointError(
                f'iteration {runner.iter + 1}: {said}; the pictures were {_names(data_batch)}. The last good checkpoint'
                f' is {runner.message_hub.runtime_info.get("last_ckpt", "none yet")}: look at the pictures, lower the'
                ' learning rate or clip the gradient, and go on with --resume'
            )


def _names(batch: Any) -> str:
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    names = [str(getattr(sample, 'img_path', 'without a name')) for sample in samples or ()]
    return ', '.join(names) or 'not named in the batch'
