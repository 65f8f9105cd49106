"""What a process must have in place before mmengine's runner is built."""

from __future__ import annotations

import inspect
import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject
from mmengine.device import get_device

from mmitpn.checkpoint.reader import register_safe_globals
from mmitpn.config_types import is_type, type_scope
from mmitpn.doctor.cuda import unused_gpu
from mmitpn.engine.atomic import register_atomic_backend
from mmitpn.engine.checkpoint_loader import register_reader
from mmitpn.engine.host_configs import register_host_configs
from mmitpn.engine.rendezvous import read_slurm, use_gloo_interface
from mmitpn.models.cpu_inference import keep_freed_memory


def setup_environment() -> None:
    """Prepare this process for any config, of this project or of a host; call it before a config is read.

    Training checkpoints become readable under torch's ``weights_only``, mmengine reads checkpoints by our reader
    (:func:`register_reader`) and writes them whole or not at all, and ``mmdet::`` and ``mmseg::`` name configs on both
    stacks. Where there is no accelerator, freed memory is kept (:func:`keep_freed_memory`), and a warning names a GPU
    whose driver is too old for torch. Calling it again changes nothing.
    """
    if get_device() == 'cpu':
        keep_freed_memory()
        advice = unused_gpu()
        if advice is not None:
            warnings.warn(f'the GPU is not used, since {advice}', stacklevel=2)
    register_safe_globals()
    register_reader()
    register_atomic_backend()
    register_host_configs()


def use_atomic_checkpoints(cfg: Config) -> None:
    """Replace mmengine's checkpoint hook in a config by ours, which takes the same options.

    Args:
        cfg: Config of a training; changed in place. A hook that is switched off (``None``) stays off, and a hook of
            another class stays.
    """
    cfg.setdefault('default_hooks', {})
    hooks = cfg.default_hooks  # what setdefault returns is not what the config holds
    if 'checkpoint' not in hooks:
        hooks['checkpoint'] = {'type': 'CheckpointHook', 'interval': 1}  # mmengine's own default
    for hook in [hooks['checkpoint'], *(cfg.get('custom_hooks') or [])]:
        if isinstance(hook, dict) and is_type(hook, 'CheckpointHook') and type_scope(hook) in ('', 'mmengine'):
            hook['type'] = 'mmitpn.AtomicCheckpointHook'


def keep_readable(cfg: Config) -> None:
    """Put classes and functions in a config back to the imports they came from, by which mmengine writes them.

    A pure Python config keeps an import as it is until it is looked at. What was taken out and put back is a class,
    which mmengine writes into the work dir and into checkpoints as a name that no config can read.

    Args:
        cfg: The config; changed in place. What is built from it stays the same.
    """
    _keep_readable(cfg._cfg_dict)


def _keep_readable(node: Any) -> None:
    if isinstance(node, ConfigDict):
        for key, value in dict.items(node):
            if isinstance(value, type) or inspect.isroutine(value):
                if '.' not in value.__qualname__ and value.__module__ != 'builtins':
                    dict.__setitem__(node, key, LazyObject(value.__module__, value.__name__))
            else:
                _keep_readable(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _keep_readable(value)


def setup_distributed(cfg: Config, launcher: str) -> None:
    """Start the process group with gloo where there is no accelerator; elsewhere the runner does it.

    mmengine's own start selects a CUDA device, and wraps the model for one, whatever the backend. Under Slurm the
    variables that torch reads are set from Slurm's (:func:`read_slurm`), with and without an accelerator.

    Args:
        cfg: Config; its ``launcher``, ``env_cfg.dist_cfg`` and ``model_wrapper_cfg`` are changed in place.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        ValueError: If the launcher needs GPUs that are not there, or its environment is missing.
    """
    cfg.launcher = launcher
    env = dict(cfg.get('env_cfg') or {})
    dist_cfg = dict(env.get('dist_cfg') or {})
    if launcher == 'slurm':
        os.environ.update(read_slurm(os.environ, port=dist_cfg.get('port')))
    if launcher == 'none' or get_device() != 'cpu':
        return
    if launcher == 'mpi':
        raise ValueError(
            '--launcher mpi needs GPUs and there is none here; on CPUs use tools/dist_train.sh (torchrun)'
            ' or tools/slurm_train.sh'
        )
    missing = [
        name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f'--launcher pytorch without {", ".join(missing)} in the environment; start it by tools/dist_train.sh'
        )
    use_gloo_interface(os.environ)
    env['dist_cfg'] = {**dist_cfg, 'backend': 'gloo'}
    cfg.env_cfg = env
    wrapper = dict(cfg.get('model_wrapper_cfg') or {})
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))
    wrapper.setdefault('broadcast_buffers', False)
    wrapper['device_ids'] = None
    cfg.model_wrapper_cfg = wrapper
    if not torch.distributed.is_initialized():
        seconds = dist_cfg.get('timeout')
        timeout = None if seconds is None else timedelta(seconds=seconds)
        torch.distributed.init_process_group('gloo', timeout=timeout)
