"""A checkpoint hook that can be killed at any moment, and the search for the file to go on from."""

from __future__ import annotations

import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmitpn.engine.atomic import register_atomic_backend, remove_leftovers, write_atomic
from mmitpn.registry import HOOKS

LAST = 'last_checkpoint'


class _Deferred:
    """Stands before a file backend and keeps its removals back until the new checkpoint is on the disk."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._waiting: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        # A checkpoint in shards is a folder.
        self._waiting.append(('rmtree' if self._backend.isdir(path) else 'remove', str(path)))

    def rmtree(self, path: str) -> None:
        self._waiting.append(('rmtree', str(path)))

    def flush(self, keep: set[str]) -> None:
        """Do the removals now, but for the files named in ``keep``."""
        waiting, self._waiting = self._waiting, []
        for action, path in waiting:
            if path not in keep and self._backend.exists(path):
                getattr(self._backend, action)(path)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with the same options, safe against a kill at any moment.

    mmengine writes a checkpoint straight to its final name, and removes the outdated one before. Here a checkpoint is
    whole or not there, ``last_checkpoint`` names it only when it is, and the one before it is removed last.
    """

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder: as mmengine does, then clear away what a killed run left.

        Args:
            runner: The runner of the training process.
        """
        register_atomic_backend()
        super().before_train(runner)
        self.file_backend = _Deferred(self.file_backend)
        if is_main_process():
            for leftover in [*remove_leftovers(runner.work_dir), *remove_leftovers(self.out_dir)]:
                print_log(f'removed {leftover}, left by a run that was stopped while it wrote', 'current')

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, then point to it, then remove the outdated: the order is the point of this class."""
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, outdated))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_atomic(Path(runner.work_dir) / LAST, self.last_ckpt.encode())
            self._remove_outdated()

    def save_now(self, runner: Runner) -> str:
        """Save at the end of a training step, whatever the interval; ``last_checkpoint`` names the file.

        Args:
            runner: The runner of the training process.

        Returns:
            The file.
        """
        name = f'iter_{runner.iter + 1}.pth'
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=True,
            save_param_scheduler=True,
            meta={},
            by_epoch=False,
            backend_args=self.backend_args,
            **self.args,
        )
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process():
            write_atomic(Path(runner.work_dir) / LAST, path.encode())
        return path

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        if is_main_process():
            self._remove_outdated()

    def _remove_outdated(self) -> None:
        best = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        self.file_backend.flush(keep={str(path) for path in (self.last_ckpt, *best) if path})


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is one and complete, by its checksums; of a folder of shards, whether its index is there.

    Args:
        path: File of torch, or folder of ``torch.distributed.checkpoint``, whose index is written last.
    """
    path = Path(path)
    if path.is_dir():
        return (path / '.metadata').is_file()
    try:
        with zipfile.ZipFile(path) as file:
            inside = {name.rpartition('/')[2] for name in file.namelist()}
            return 'data.pkl' in inside and 'constants.pkl' not in inside and file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError):
        return False


def find_resumable(work_dir: str | Path) -> Path | None:
    """Find the checkpoint to go on from; those that are newer and broken are named in the log.

    Args:
        work_dir: Folder of a run. The file named in its ``last_checkpoint`` comes first (looked for beside it too, so
            that a folder may be moved), then the newest whole ``epoch_*.pth`` or ``iter_*.pth``.

    Returns:
        Path of the checkpoint, or None if there is none.
    """
    work_dir = Path(work_dir)
    candidates: list[Path] = []
    pointer = work_dir / LAST
    named = pointer.read_text().strip() if pointer.is_file() else ''
    if named:
        candidates += [Path(named), work_dir / Path(named).name]
    saved = [path for pattern in ('epoch_*', 'iter_*') for path in work_dir.glob(pattern)]
    candidates += sorted(saved, key=lambda path: path.stat().st_mtime, reverse=True)
    broken: list[Path] = []
    for path in dict.fromkeys(candidates):
        if not path.exists():
            continue
        if is_whole(path):
            if broken:
                names = ', '.join(str(one) for one in broken)
                print_log(f'not whole: {names}; going on from {path} instead', 'current', logging.WARNING)
            return path
        broken.append(path)
    if broken:
        print_log(f'not whole: {", ".join(map(str, broken))}; no other checkpoint', 'current', logging.WARNING)
    return None
