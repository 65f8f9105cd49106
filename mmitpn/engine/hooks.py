"""Hooks that stop a training run: at a NaN or infinite loss or image, and at a scheduler's signal."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

import psutil
import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mmitpn.engine.checkpointing import AtomicCheckpointHook
from mmitpn.registry import FUNCTIONS, HOOKS
from mmitpn.utils import is_int


def _check_interval(interval: int, unit: str) -> None:
    if not is_int(interval) or interval < 1:
        raise ValueError(f'interval is {interval!r}; give an integer number of {unit} of at least 1')


# --- NaN and infinite values -----------------------------------------------------------------------------------------


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Raises FloatingPointError for a NaN or infinite image or loss, with the iteration and the images.

    Images are checked before the forward pass, where they are floating-point and still on the CPU (integer values
    are always finite). Losses are checked just before the optimizer's step, so that the weights stay as they were;
    with gradient accumulation also after an iteration without a step. If the loss of one process is invalid, all
    processes stop: its gradient has reached each of them. The hook runs before the checkpoint hook: the last checkpoint
    in the work dir is from before.

    For the log, all losses on a device are copied to the CPU at once; without this hook, mmengine waits for each loss.

    Args:
        interval: Iterations between two checks of the losses; each waits for the device. Between them an invalid loss
            reaches the weights.
    """

    priority = 5  # before RuntimeInfoHook (VERY_HIGH, 10), which reads the losses for the log

    def __init__(self, interval: int = 1) -> None:
        _check_interval(interval, 'iterations')
        self.interval = interval
        self._handles: list[RemovableHandle] = []
        self._losses: dict[str, list[Tensor]] = {}  # of the last forward pass, until they were checked
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        """Register hooks on the losses of the model and the steps of its optimizers."""
        self._release()
        self._handles.append(runner.model.register_forward_hook(self._keep_losses, with_kwargs=True))
        wrapper = runner.optim_wrapper
        for one in getattr(wrapper, 'optim_wrappers', {'': wrapper}).values():
            optimizer = getattr(one, 'optimizer', None)
            if isinstance(optimizer, torch.optim.Optimizer):
                self._handles.append(optimizer.register_step_pre_hook(partial(self._before_step, runner)))

    def after_train(self, runner: Runner) -> None:  # noqa: ARG002
        """Remove the hooks from the model and the optimizers."""
        self._release()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        """Check the images.

        Raises:
            FloatingPointError: If a value of an image is not finite.
        """
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
        """Check the losses, unless that was done before the optimizer's step.

        Raises:
            FloatingPointError: If one is not finite.
        """
        del batch_idx
        if not self._handles:  # the hook was called without a training run around it
            self._batch, self._losses = data_batch, _losses_of(outputs)
        self._check_losses(runner)
        self._batch = None
        _copy_to_host(outputs)

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
        self._check_losses(runner)

    def _check_losses(self, runner: Runner) -> None:
        """Raise if a loss of the last forward pass is invalid, here or in another process; each is checked once."""
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
            bad.pop('loss', None)  # the sum adds no information
        if bad:
            values = ', '.join(f'{name} is {value}' for name, value in bad.items())
            what = f'{values}; the images were {", ".join(_names(self._batch)) or "not named in the batch"}'
        else:
            what = 'a loss of another process is NaN or infinite; the error of that process names the images'
        raise FloatingPointError(
            f'iteration {runner.iter + 1}: {what}. The last good checkpoint is'
            f' {runner.message_hub.runtime_info.get("last_ckpt", "none yet")}: look at the images, lower the learning'
            ' rate or clip the gradient, and resume with --resume'
        )


def _losses_of(outputs: Any) -> dict[str, list[Tensor]]:
    """The losses among the outputs of a model; a list of tensors is one loss, as for mmengine."""
    losses = {}
    for name, value in outputs.items() if isinstance(outputs, Mapping) else ():
        parts = [part for part in (value if isinstance(value, list | tuple) else [value]) if isinstance(part, Tensor)]
        if 'loss' in name and parts:
            losses[name] = [part.detach() for part in parts]
    return losses


def _copy_to_host(outputs: Mapping[str, Any] | None) -> None:
    """Replace the scalars on a device by numbers, in one copy."""
    scalars = {
        name: value
        for name, value in (outputs.items() if isinstance(outputs, MutableMapping) else ())
        if isinstance(value, Tensor) and value.numel() == 1 and value.device.type != 'cpu'
    }
    if scalars:
        values = torch.stack([value.detach().reshape(()).float() for value in scalars.values()]).tolist()
        outputs.update(zip(scalars, values, strict=True))


def _sum(loss: Tensor) -> Tensor:
    """A scalar, finite only if every value is."""
    return (loss if loss.ndim == 0 else loss.sum()).float()


def _broken_images(batch: Any) -> list[str]:
    """Names of the images with NaN or infinite values; images on a device are skipped, since they need a sync."""
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


# --- signals ---------------------------------------------------------------------------------------------------------


class TrainingStopped(Exception):  # noqa: N818  it is no error
    """A training run was stopped by a signal, after it saved its state."""


@HOOKS.register_module()
class StopOnSignalHook(Hook):
    """Saves a checkpoint and stops when the process receives a signal, at the end of the step.

    All processes stop at the same step, whichever received the signal. With gradient accumulation it is the step at
    which the weights change. A signal that arrives during an evaluation waits for the next training step.

    Args:
        signals: Names of the signals.
        interval: Steps between two exchanges among processes; a single process checks after every step.
    """

    priority = 'LOWEST'  # after the hooks whose state a checkpoint contains, and after the checkpoint hook

    def __init__(self, signals: Sequence[str] = ('SIGTERM',), interval: int = 5) -> None:
        unknown = [name for name in signals if not hasattr(signal, name)]
        if isinstance(signals, str) or unknown:
            raise ValueError(f"signals is {signals!r}; give a list of names such as 'SIGTERM', 'SIGUSR1'")
        _check_interval(interval, 'steps')
        self._signals = [getattr(signal, name) for name in signals]
        self._interval = interval
        self._before: dict[int, Any] = {}
        self._received = 0

    def before_train(self, runner: Runner) -> None:  # noqa: ARG002
        """Handle the signals from now on."""
        multiprocessing.util.Finalize(None, _leave, exitpriority=100)  # before this process ends those that it started
        self._before = {number: signal.signal(number, self._note) for number in self._signals}

    def after_train(self, runner: Runner) -> None:  # noqa: ARG002
        """Restore the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self._received = number

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Save and stop after a signal.

        Raises:
            TrainingStopped: If a signal was received.
        """
        del batch_idx, data_batch, outputs
        if not self._all_agree(runner):
            return
        for hook in runner.hooks:
            if isinstance(hook, AtomicCheckpointHook):
                saved = hook.save_now(runner)
                raise TrainingStopped(f'saved {saved} after iteration {runner.iter + 1}; resume with --resume')
        raise TrainingStopped(f'iteration {runner.iter + 1} is not saved: the config has no checkpoint hook')

    def _all_agree(self, runner: Runner) -> bool:
        several = get_world_size() > 1
        if several and not self.every_n_train_iters(runner, self._interval):
            return False
        ready = getattr(runner.optim_wrapper, 'should_update', lambda: True)()
        if not several:
            return bool(self._received) and ready
        # The device of the process group's backend is the model's.
        received = torch.tensor([self._received], device=next(runner.model.parameters()).device)
        all_reduce(received, op='max')
        self._received = int(received)
        return bool(self._received) and ready


_LEAVING = multiprocessing.Value('b', 0, lock=False)  # shared with the workers that are forked from this process


def _leave() -> None:
    _LEAVING.value = 1


@FUNCTIONS.register_module()
def outlast_stop_signal(worker_id: int) -> None:
    """A data loader's ``worker_init_fn``: a scheduler signals all processes of a job, and the workers must outlast it.

    They still end when the training process does, which terminates them by the same signal. Workers that are not forked
    cannot see that, and are left unchanged.

    Args:
        worker_id: Not used.
    """
    del worker_id
    if multiprocessing.get_start_method() == 'fork':
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if _LEAVING.value else None)


def terminate_with_launcher(launcher: str) -> None:
    """Send this process SIGTERM when its launcher dies: torchrun leaves its processes behind when it is killed.

    Args:
        launcher: Of the command line; only torchrun (``'pytorch'``) does so. ``MMITPN_LAUNCHER`` is the process id of
            torchrun where it is not this process's parent (``tools/rank.sh`` is started in between).
    """
    if launcher == 'pytorch':
        number = int(os.environ.get('MMITPN_LAUNCHER', os.getppid()))
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(number, ended), name='launcher watch', daemon=True)
        watch.start()
        # A thread that wakes while the interpreter is taken down can abort the process.
        atexit.register(lambda: (ended.set(), watch.join()))


def _watch(number: int, ended: threading.Event) -> None:
    while _is_running(number):
        if ended.wait(1):
            return
    sys.stderr.write('the launcher is gone: saving and stopping\n')
    os.kill(os.getpid(), signal.SIGTERM)


def _is_running(number: int) -> bool:
    """Whether a process runs; one that has ended remains a zombie until its parent waits for it."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True
