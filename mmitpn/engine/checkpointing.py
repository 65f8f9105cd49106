"""Checkpoints of training runs: complete files only, one reader for all of them, and hooks that save and check them.

mmengine reads and writes through this module once :func:`register_atomic_backend` and :func:`register_reader` were
called (:func:`mmitpn.engine.setup_environment` does so).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmitpn.atomic import remove_leftovers, write_atomic
from mmitpn.checkpoint import read_checkpoint
from mmitpn.checkpoint.diagnostics import some
from mmitpn.checkpoint.loader import fit_shape
from mmitpn.checkpoint.sharded import INDEX, META, read_index
from mmitpn.config_types import is_type, type_scope
from mmitpn.registry import HOOKS
from mmitpn.weights.download import SCHEMES

LAST = 'last_checkpoint'  # file in the work dir that names the newest checkpoint, as mmengine writes it
WEB = ('http://', 'https://')
EXPORTED = ('backbone.', 'neck.')


# --- writing ---------------------------------------------------------------------------------------------------------


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files with atomic writes; mmengine writes its checkpoints through it."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write the complete content of a file."""
        write_atomic(filepath, obj)


def register_atomic_backend() -> None:
    """Make mmengine write local files atomically from now on, in this process."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')


def use_atomic_checkpoints(cfg: Config) -> list[str]:
    """Replace mmengine's checkpoint hook in a config by :class:`AtomicCheckpointHook`, which has the same options.

    Args:
        cfg: Config of a training run; changed in place. A hook that is switched off (``None``) stays off, and a hook of
            another class stays.

    Returns:
        The changes, one line each: ``'KEY: OLD -> NEW'``.
    """
    cfg.setdefault('default_hooks', {})
    hooks = cfg.default_hooks  # what setdefault returns is not what the config holds
    if 'checkpoint' not in hooks:
        hooks['checkpoint'] = {'type': 'CheckpointHook', 'interval': 1}  # mmengine's own default
    named = {'default_hooks.checkpoint': hooks['checkpoint']}
    named |= {f'custom_hooks[{index}]': hook for index, hook in enumerate(cfg.get('custom_hooks') or [])}
    changes = []
    for name, hook in named.items():
        if isinstance(hook, dict) and is_type(hook, 'CheckpointHook') and type_scope(hook) in ('', 'mmengine'):
            hook['type'] = 'mmitpn.AtomicCheckpointHook'
            changes.append(f'{name}.type: CheckpointHook -> mmitpn.AtomicCheckpointHook')
    return changes


class _DeferredRemoval:
    """A file backend whose removals are deferred until the new checkpoint is on the disk."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._waiting: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        # A sharded checkpoint is a folder.
        self._waiting.append(('rmtree' if self._backend.isdir(path) else 'remove', str(path)))

    def rmtree(self, path: str) -> None:
        self._waiting.append(('rmtree', str(path)))

    def flush(self, keep: set[str]) -> None:
        """Remove the files now, except those named in ``keep``."""
        waiting, self._waiting = self._waiting, []
        for action, path in waiting:
            if path not in keep and self._backend.exists(path):
                getattr(self._backend, action)(path)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` with the same options, safe against a kill at any moment.

    mmengine writes a checkpoint directly to its final name, and removes the outdated one before. Here a checkpoint is
    complete or does not exist, ``last_checkpoint`` names it only when it is complete, and the outdated one is removed
    last.
    """

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder: as mmengine does, then remove what a killed run left."""
        register_atomic_backend()
        super().before_train(runner)
        self.file_backend = _DeferredRemoval(self.file_backend)
        if is_main_process():
            for leftover in [*remove_leftovers(runner.work_dir), *remove_leftovers(self.out_dir)]:
                print_log(f'removed {leftover}, left by a run that was stopped while it wrote', 'current')

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, then point to it, then remove the outdated one: the order is the purpose of this class."""
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                self.file_backend.remove(self.file_backend.join_path(self.out_dir, outdated))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self._write(
            runner,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
        )
        if is_main_process():
            self._remove_outdated()

    def save_now(self, runner: Runner) -> str:
        """Save at the end of a training step, whatever the interval; returns the file, as does ``last_checkpoint``."""
        name = f'iter_{runner.iter + 1}.pth'
        return self._write(runner, name, save_optimizer=True, save_param_scheduler=True, meta={}, by_epoch=False)

    def _write(self, runner: Runner, name: str, **settings: Any) -> str:
        """Save a checkpoint and let ``last_checkpoint`` name it; returns its path."""
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, backend_args=self.backend_args, **settings, **self.args
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


@HOOKS.register_module()
class ExportPretrainedHook(Hook):
    """Writes backbone and pyramid of a finished pre-training run, and nothing else, into the work dir.

    ``init_cfg=dict(type='Pretrained', checkpoint=FILE)`` of backbone and neck accept the file, as does
    ``tools/train.py --pretrained``. Averaged weights are written where the run averages them (mmengine's ``EMAHook``).

    Args:
        filename: Name of the file.
    """

    priority = 'VERY_LOW'

    def __init__(self, filename: str = 'pretrained.pth') -> None:
        self.filename = filename

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Write the file."""
        content = {'meta': {}, 'state_dict': unwrap(runner.model).state_dict()}
        runner.call_hook('before_save_checkpoint', checkpoint=content)  # EMAHook swaps in the averaged weights
        weights = content['state_dict'].items()
        state = {name: value.detach().cpu() for name, value in weights if name.startswith(EXPORTED)}
        path = Path(runner.work_dir) / self.filename
        buffer = BytesIO()
        torch.save({'state_dict': state}, buffer)
        write_atomic(path, buffer.getvalue())
        print_log(f'backbone and pyramid: {path} ({len(state)} weights)', 'current')


# --- reading ---------------------------------------------------------------------------------------------------------


def register_reader() -> None:
    """Let mmengine read files as :func:`mmitpn.checkpoint.read_checkpoint` does, from now on, in this process.

    This applies to ``load_from``, ``resume`` and the ``init_cfg`` of any module. Nothing in a file is executed;
    safetensors, sharded checkpoints and weights by name (``mmitpn://NAME``) are read too; a file that is not a
    checkpoint raises a ValueError of one sentence. Calling it again changes nothing.
    """
    named = [f'{scheme}://' for scheme in SCHEMES]
    CheckpointLoader.register_scheme(('', 'file://', *named), loader=load_from_local, force=True)
    web = CheckpointLoader._get_checkpoint_loader(WEB[0])
    if not getattr(web, 'explains', False):
        CheckpointLoader.register_scheme(WEB, loader=_with_fallback(web), force=True)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local checkpoint; a loader of mmengine's ``CheckpointLoader``.

    Args:
        filename: Path or ``file://`` address of a file, path of a sharded checkpoint (a folder), or weights by name.
        map_location: As of ``torch.load``.

    Returns:
        The content of the file. Weights that are in no mapping of their own, as in safetensors, are in
        ``'state_dict'``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read; the message names what the file is.
    """
    try:
        with Path(filename).expanduser().open('rb') as file:  # its name would make torch 2.14 read safetensors
            content = torch.load(file, map_location=map_location, weights_only=True)
    except Exception:  # noqa: BLE001 - read_checkpoint reads it, or raises what is wrong with the file
        content = None
    return dict(content) if isinstance(content, Mapping) else _read(filename)


def _read(source: str) -> dict[str, Any]:
    content = read_checkpoint(source, allow_objects=True)  # as inert stand-ins
    raw = bool(content) and all(isinstance(value, Tensor) for value in content.values())
    return {'state_dict': content} if raw else content


def _with_fallback(load: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of mmengine with :func:`mmitpn.checkpoint.read_checkpoint` for what it cannot read."""

    def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
        try:
            content = load(filename, map_location)
        except Exception:  # noqa: BLE001 - as above
            content = None
        return content if isinstance(content, Mapping) else _read(filename)

    load_from_http.explains = True
    return load_from_http


def read_without_tensors(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """Read the content of a checkpoint without loading the values of its tensors.

    Args:
        checkpoint: File, its name (``mmitpn://NAME``), or sharded checkpoint (a folder), of which everything but the
            tensors is read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    path = Path(checkpoint)
    if path.is_dir():
        if not (path / INDEX).is_file():
            read_checkpoint(path)  # raises: a folder of other files
        read_index(path)
        checkpoint = path / META
        if not checkpoint.is_file():
            return {}
    return read_checkpoint(checkpoint, allow_objects=True, mmap=True)


# --- comparison with a model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShapeMismatch:
    """A weight, or a state of the optimizer, that does not fit.

    Attributes:
        name: Its name.
        stored: Its shape in the file; None where the file does not have it.
        own: Its shape in the model.
    """

    name: str
    stored: tuple[int, ...] | None
    own: tuple[int, ...]

    def __str__(self) -> str:
        """The name and both shapes."""
        if self.stored is None:
            return f'{self.name}, {self.own} in the model, is not in the file'
        return f'{self.name} is {self.stored} in the file and {self.own} in the model'


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of distributed wrappers and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def compare_weights(
    model: nn.Module, checkpoint: Mapping[str, Any], *, resizable: bool = False
) -> tuple[list[ShapeMismatch], int]:
    """Compare the parameters of a model with the weights of a checkpoint.

    Args:
        model: The model, with or without a wrapper.
        checkpoint: Content of the file: a dict with ``state_dict``, or the state dict itself.
        resizable: Accept position embeddings of another grid, and a first layer for other input channels, which their
            module adapts when they are loaded. The state of an optimizer is not adapted.

    Returns:
        The parameters that are missing or have another shape, and the number of parameters of the model.
    """
    state = checkpoint.get('state_dict', checkpoint)  # no other key: mmengine loads nothing from below one
    stored = {
        str(name).removeprefix('module.'): tuple(value.shape) if isinstance(value, Tensor) else None
        for name, value in state.items()
    }
    inner = unwrap(model)
    parameters = dict(inner.named_parameters())
    mismatches = []
    for name, parameter in parameters.items():
        found, own = stored.get(name), tuple(parameter.shape)
        fit = fit_shape(inner, name, torch.Size(found)) if resizable and found not in (None, own) else None
        if found != own and (fit is None or fit.error):
            mismatches.append(ShapeMismatch(name, found, own))
    return mismatches, len(parameters)


@HOOKS.register_module()
class WholeWeightsHook(Hook):
    """Refuses a checkpoint that lacks parameters of the model, or has them in another shape.

    mmengine only logs what is missing, and an incomplete model is evaluated without an error: its scores look like
    those of a failed training run.
    """

    priority = 'LOWEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare names and shapes; ``checkpoint`` is a dict with ``state_dict``, or the state dict itself.

        Raises:
            ValueError: If a parameter is missing or has another shape; names the first three.
        """
        mismatches, total = compare_weights(runner.model, checkpoint, resizable=True)
        if mismatches:
            raise ValueError(
                f'the checkpoint does not fit the config: {len(mismatches)} of {total} parameters'
                f' ({some([str(mismatch) for mismatch in mismatches])}); give the config that it was trained with'
            )
