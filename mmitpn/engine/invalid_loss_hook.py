"""Stops a training run with a NaN or infinite loss, before it reaches the weights and before anything is saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from math import isfinite
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mmitpn.registry import HOOKS


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Raises FloatingPointError for a NaN or infinite image or loss, with the iteration and the images.

    Images are looked at before the forward pass, where they are floating-point and still on the CPU (integer values
    are always finite). Losses are looked at just before the optimizer's step, so that the weights stay as they were;
    with gradient accumulation also after an iteration without a step. If the loss of one process is invalid, all
    processes stop: its gradient has reached each of them. The hook runs before the checkpoint hook: the last checkpoint
    in the work dir is from before.

    Args:
        interval: Iterations between two looks at the losses; each waits for the device. Between them an invalid loss
            reaches the weights.
    """

    priority = 'VERY_HIGH'

    def __init__(self, interval: int = 1) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval is {interval!r}; give an integer number of iterations of at least 1')
        self.interval = interval
        self._handles: list[RemovableHandle] = []
        self._losses: dict[str, list[Tensor]] = {}  # of the last forward pass, until they were looked at
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        """Follow the losses that the model gives and the steps of its optimizers.

        Args:
            runner: The runner of the training run.
        """
        self._release()
        self._handles.append(runner.model.register_forward_hook(self._keep_losses, with_kwargs=True))
        wrapper = runner.optim_wrapper
        for one in getattr(wrapper, 'optim_wrappers', {'': wrapper}).values():
            optimizer = getattr(one, 'optimizer', None)
            if isinstance(optimizer, torch.optim.Optimizer):
                self._handles.append(optimizer.register_step_pre_hook(partial(self._before_step, runner)))

    def after_train(self, runner: Runner) -> None:
        """Let go of the model and the optimizers.

        Args:
            runner: Not used.
        """
        del runner
        self._release()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the images.

        Args:
            runner: The runner of the training run.
            batch_idx: Not used.
            data_batch: The batch.

        Raises:
            FloatingPointError: If a value of an image is not finite.
        """
        del batch_idx
        self._batch, self._losses = data_batch, {}
        broken = _broken_images(data_batch)
        if broken:
            raise FloatingPointError(
                f'iteration {runner.iter + 1}: NaN or infinite values in the image(s) {", ".join(broken)}: look at'
                ' these files and at the transforms of the pipeline, and resume with --resume'
            )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Look at the losses, unless that was done before the optimizer's step.

        Args:
            runner: The runner of the training run.
            batch_idx: Not used.
            data_batch: The batch, for the names of its images.
            outputs: The losses by name.

        Raises:
            FloatingPointError: If one is not finite.
        """
        del batch_idx
        if not self._handles:  # the hook was called without a training run around it
            self._batch, self._losses = data_batch, _losses_of(outputs)
        self._look(runner)
        self._batch = None

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._losses, self._batch = [], {}, None

    def _keep_losses(self, module: Any, args: Any, kwargs: Mapping[str, Any], outputs: Any) -> None:
        del module, args
        if kwargs.get('mode') == 'loss':
            self._losses = _losses_of(outputs)

    def _before_step(self, runner: Runner, *args: Any) -> None:
        del args
        self._look(runner)

    def _look(self, runner: Runner) -> None:
        """Raise if a loss of the last forward pass is invalid, here or in another process; look at each but once."""
        losses, self._losses = self._losses, {}
        if not losses or not self.every_n_train_iters(runner, self.interval):
            return
        sums = [_sum(part) for parts in losses.values() for part in parts]
        invalid = (~torch.isfinite(torch.stack([one.to(sums[0].device) for one in sums]))).any().float()
        if get_world_size() > 1:
            all_reduce(invalid, 'max')
        if not bool(invalid):
            return
        sums = {name: sum(_sum(part).item() for part in parts) for name, parts in losses.items()}
        bad = {name: value for name, value in sums.items() if not isfinite(value)}
        if len(bad) > 1:
            bad.pop('loss', None)  # the sum says nothing more
        if bad:
            values = ', '.join(f'{name} is {value}' for name, value in bad.items())
            what = f'{values}; the images were {", ".join(_names(self._batch)) or "not named in the batch"}'
        else:
            what = 'a loss of another process is NaN or infinite; its message names the images'
        raise FloatingPointError(
            f'iteration {runner.iter + 1}: {what}. The last good checkpoint is'
            f' {runner.message_hub.runtime_info.get("last_ckpt", "none yet")}: look at the images, lower the learning'
            ' rate or clip the gradient, and resume with --resume'
        )


def _losses_of(outputs: Any) -> dict[str, list[Tensor]]:
    """The losses among what a model gives; a list of tensors is one loss, as for mmengine."""
    losses = {}
    for name, value in outputs.items() if isinstance(outputs, Mapping) else ():
        parts = [part for part in (value if isinstance(value, list | tuple) else [value]) if isinstance(part, Tensor)]
        if 'loss' in name and parts:
            losses[name] = [part.detach() for part in parts]
    return losses


def _sum(loss: Tensor) -> Tensor:
    """One number, finite only if every value is."""
    return (loss if loss.ndim == 0 else loss.sum()).float()


def _broken_images(batch: Any) -> list[str]:
    """Names of the images with NaN or infinite values; those that are on a device are not waited for."""
    inputs = batch.get('inputs') if isinstance(batch, Mapping) else None
    if not isinstance(inputs, Tensor | list | tuple) or not len(inputs):
        return []
    # Images (C, H, W), or views of all images of the batch, (B, C, H, W) each.
    views = [inputs] if isinstance(inputs, Tensor) or getattr(inputs[0], 'ndim', 4) < 4 else inputs
    broken = {
        index for view in views if isinstance(view, Tensor | list) for index, image in enumerate(view) if _broken(image)
    }
    names = dict(enumerate(_names(batch)))
    return [names.get(index, f'number {index + 1} of the batch') for index in sorted(broken)]


def _broken(image: Any) -> bool:
    if not isinstance(image, Tensor) or image.device.type != 'cpu' or not image.is_floating_point():
        return False
    # Mostly one pass without a mask in memory: a sum is finite only if every value is.
    return not (bool(torch.isfinite(image.sum())) or bool(torch.isfinite(image).all()))


def _names(batch: Any) -> list[str]:
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    if not isinstance(samples, Iterable):
        return []
    return [str(getattr(sample, 'img_path', 'without a name')) for sample in samples]
