"""What a scheduler's signal does to a training: it saves, stops, and says so."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmitpn.engine.checkpoint_hook import AtomicCheckpointHook
from mmitpn.registry import FUNCTIONS, HOOKS


class TrainingStopped(Exception):  # noqa: N818  it is no error
    """A training was stopped by a signal, after it saved its state."""


@HOOKS.register_module()
class StopOnSignalHook(Hook):
    """Saves a checkpoint and stops when the process is sent a signal, at the end of the step.

    All processes stop at the same step, whichever was sent the signal. With gradient accumulation it is the step at
    which the weights change. A signal that comes while the model is evaluated waits for the next training step.

    Args:
        signals: Names of the signals.
        interval: Steps after which processes ask each other; a single process looks after every step.
    """

    priority = 'LOWEST'  # after all that a checkpoint holds, and after the hook that makes them

    def __init__(self, signals: Sequence[str] = ('SIGTERM',), interval: int = 5) -> None:
        unknown = [name for name in signals if not hasattr(signal, name)]
        if isinstance(signals, str) or unknown:
            raise ValueError(f"signals is {signals!r}; give a list of names such as 'SIGTERM', 'SIGUSR1'")
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval is {interval!r}; give a whole number of steps of at least 1')
        self._signals = [getattr(signal, name) for name in signals]
        self._interval = interval
        self._before: dict[int, Any] = {}
        self._seen = 0

    def before_train(self, runner: Runner) -> None:
        """Wait for the signals from now on."""
        del runner
        multiprocessing.util.Finalize(None, _leave, exitpriority=100)  # before this process ends those that it started
        self._before = {number: signal.signal(number, self._note) for number in self._signals}

    def after_train(self, runner: Runner) -> None:
        """Leave the signals to who had them before."""
        del runner
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self._seen = number

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Save and stop, where a signal came.

        Args:
            runner: The runner of the training process.
            batch_idx: Not used.
            data_batch: Not used.
            outputs: Not used.

        Raises:
            TrainingStopped: If so.
        """
        del batch_idx, data_batch, outputs
        if not self._all_agree(runner):
            return
        for hook in runner.hooks:
            if isinstance(hook, AtomicCheckpointHook):
                saved = hook.save_now(runner)
                raise TrainingStopped(f'saved {saved} after iteration {runner.iter + 1}; go on with --resume')
        raise TrainingStopped(f'iteration {runner.iter + 1} is not saved: the config has no checkpoint hook')

    def _all_agree(self, runner: Runner) -> bool:
        several = get_world_size() > 1
        if several and not self.every_n_train_iters(runner, self._interval):
            return False
        ready = getattr(runner.optim_wrapper, 'should_update', lambda: True)()
        if not several:
            return bool(self._seen) and ready
        # The device of the process group's backend is the model's.
        seen = torch.tensor([self._seen], device=next(runner.model.parameters()).device)
        all_reduce(seen, op='max')
        self._seen = int(seen)
        return bool(self._seen) and ready


_LEAVING = multiprocessing.Value('b', 0, lock=False)  # shared with the workers that are forked from this process


def _leave() -> None:
    _LEAVING.value = 1


@FUNCTIONS.register_module()
def outlast_stop_signal(worker_id: int) -> None:
    """A data loader's ``worker_init_fn``: a scheduler signals all processes of a job, and the workers must outlast it.

    They still end when the training process does, which terminates them by the same signal. Workers that are not forked
    do not know of that, and are left as they are.

    Args:
        worker_id: Not used.
    """
    del worker_id
    if multiprocessing.get_start_method() == 'fork':
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if _LEAVING.value else None)


def stop_with_launcher(launcher: str) -> None:
    """Send this process SIGTERM when its launcher dies: torchrun leaves its processes behind when it is killed.

    Args:
        launcher: Of the command line; only torchrun (``'pytorch'``) does so. ``MMITPN_LAUNCHER`` is the number of its
            process where that is not this one's parent (``tools/rank.sh`` stands between them).
    """
    if launcher == 'pytorch':
        number = int(os.environ.get('MMITPN_LAUNCHER', os.getppid()))
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(number, ended), name='launcher watch', daemon=True)
        watch.start()
        # A thread that wakes while the interpreter is taken down can abort the process.
        atexit.register(lambda: (ended.set(), watch.join()))


def _watch(number: int, ended: threading.Event) -> None:
    while _runs(number):
        if ended.wait(1):
            return
    sys.stderr.write('the launcher is gone: saving and stopping\n')
    os.kill(os.getpid(), signal.SIGTERM)


def _runs(number: int) -> bool:
    """Whether a process runs; one that has ended is there until its parent looks, which may wait for this one."""
    try:
        os.kill(number, 0)
        return Path(f'/proc/{number}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or no /proc
        return True
