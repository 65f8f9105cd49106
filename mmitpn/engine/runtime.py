"""The process around mmengine's runner: what it needs before a config is read, and how distributed processes meet."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import warnings
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from typing import Any

import psutil
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from mmitpn.checkpoint.reader import register_safe_globals
from mmitpn.engine.checkpointing import register_atomic_backend, register_reader
from mmitpn.engine.config_utils import register_host_configs
from mmitpn.installation import explain_unused_gpu
from mmitpn.models.cpu_inference import keep_freed_memory

LOOPBACK = '127.0.0.1'
# Ports that follow from a Slurm job's number: below those that systems assign by themselves (from 32768 on Linux).
FIRST_PORT, PORTS = 12000, 20000
# Warnings of the frameworks and of torch that a user of this project cannot act on.
NOISE = ('faster_coco_eval is not installed', 'torch.meshgrid: in an upcoming release')
STEPS = 16  # steps of one job that run at once and have ports of their own


def setup_environment() -> None:
    """Prepare this process for any config, of this project or of a framework; call it before a config is read.

    Training checkpoints become readable under torch's ``weights_only``, mmengine reads checkpoints by
    :func:`mmitpn.checkpoint.read_checkpoint` and writes them atomically, and ``mmdet::`` and ``mmseg::`` name configs
    on both stacks. Where there is no accelerator, freed memory is kept (:func:`keep_freed_memory`), and a warning names
    a GPU whose driver is too old for torch. Warnings of the frameworks that nobody can act on are left out. Calling it
    again changes nothing.
    """
    for text in NOISE:
        warnings.filterwarnings('ignore', message=text)
    if get_device() == 'cpu':
        keep_freed_memory()
        reason = explain_unused_gpu()
        if reason is not None:
            warnings.warn(f'the GPU is not used, since {reason}', stacklevel=2)
    register_safe_globals()
    register_reader()
    register_atomic_backend()
    register_host_configs()


def setup_distributed(cfg: Config, launcher: str) -> None:
    """Start the process group with gloo where there is no accelerator; elsewhere the runner does it.

    mmengine's own start selects a CUDA device, and wraps the model for one, whatever the backend. Under Slurm the
    variables that torch reads are set from Slurm's (:func:`read_slurm`), with and without an accelerator.

    Args:
        cfg: Config; its ``launcher``, ``env_cfg.dist_cfg`` and ``model_wrapper_cfg`` are changed in place.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        ValueError: If the launcher needs GPUs and there are none, or its environment is missing.
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
    names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(
            f'--launcher pytorch without {", ".join(missing)} in the environment; start it by tools/dist_train.sh'
        )
    use_gloo_interface(os.environ)
    env['dist_cfg'] = {**dist_cfg, 'backend': 'gloo'}
    cfg.env_cfg = env
    cfg.model_wrapper_cfg = {**ddp_wrapper(cfg), 'device_ids': None}
    if not torch.distributed.is_initialized():
        seconds = dist_cfg.get('timeout')
        timeout = None if seconds is None else timedelta(seconds=seconds)
        torch.distributed.init_process_group('gloo', timeout=timeout)


def ddp_wrapper(cfg: Config) -> dict[str, Any]:
    """The config's ``model_wrapper_cfg``, with what mmengine sets where there is none."""
    return {
        'type': 'MMDistributedDataParallel',
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        'broadcast_buffers': False,
        **(cfg.get('model_wrapper_cfg') or {}),
    }


# --- Slurm -----------------------------------------------------------------------------------------------------------


def read_slurm(env: Mapping[str, str], *, port: int | None = None) -> dict[str, str]:
    """Derive the variables that torch reads from those that ``srun`` sets.

    Args:
        env: Environment of a process that ``srun`` started. A ``MASTER_ADDR`` or ``MASTER_PORT`` in it is kept.
        port: Port of the rendezvous, before that of the environment. With neither it follows from the numbers of job
            and step.

    Returns:
        ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. The processes meet on the first
        host of the step, by the loopback address where it has no other.

    Raises:
        ValueError: If the process was not started by ``srun``, or the first host is unknown.
    """
    missing = [name for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_STEP_ID') if name not in env]
    if missing:
        raise ValueError(
            f'--launcher slurm without {", ".join(missing)} in the environment; start it by tools/slurm_train.sh or'
            ' srun, inside a batch script too'
        )
    if port is None:
        job = int(env.get('SLURM_JOB_ID', '0'))
        port = int(env.get('MASTER_PORT', FIRST_PORT + (STEPS * job + int(env['SLURM_STEP_ID']) % STEPS) % PORTS))
    return {
        'RANK': env['SLURM_PROCID'],
        'WORLD_SIZE': env['SLURM_NTASKS'],
        'LOCAL_RANK': env['SLURM_LOCALID'],
        'MASTER_ADDR': env.get('MASTER_ADDR') or first_host(env),
        'MASTER_PORT': str(port),
    }


def first_host(env: Mapping[str, str]) -> str:
    """Name the first host of a Slurm step.

    Args:
        env: Environment of a process that ``srun`` started.

    Returns:
        The host's name, or the loopback address if the step has one host.

    Raises:
        ValueError: If Slurm's list of hosts is absent, or is in its short form and ``scontrol`` cannot expand it.
    """
    if env.get('SLURM_STEP_NUM_NODES') == '1':
        return LOOPBACK
    hosts = env.get('SLURM_STEP_NODELIST') or env.get('SLURM_NODELIST') or ''
    if hosts and '[' not in hosts:
        return hosts.split(',', maxsplit=1)[0]
    if hosts and shutil.which('scontrol'):
        done = subprocess.run(['scontrol', 'show', 'hostnames', hosts], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    raise ValueError(
        f'cannot tell the first host of SLURM_STEP_NODELIST={hosts!r} (scontrol did not expand it);'
        ' set MASTER_ADDR to its name'
    )


# --- gloo ------------------------------------------------------------------------------------------------------------


def use_gloo_interface(env: MutableMapping[str, str]) -> None:
    """Let gloo use the interface that leads to ``MASTER_ADDR``.

    By default gloo takes the address that this machine's own name resolves to. Where that is a loopback address, as on
    a fresh Debian, processes on other machines cannot connect to it.

    Args:
        env: Environment with ``MASTER_ADDR``; ``GLOO_SOCKET_IFNAME`` is set in it, unless it is set already or the
            route to ``MASTER_ADDR`` does not leave this machine.
    """
    if env.get('GLOO_SOCKET_IFNAME'):
        return
    interface = find_interface(env['MASTER_ADDR'])
    if interface is not None:
        env['GLOO_SOCKET_IFNAME'] = interface
        print_log(f'gloo uses {interface}, which leads to {env["MASTER_ADDR"]} (GLOO_SOCKET_IFNAME)', 'current')


def find_interface(host: str) -> str | None:
    """Name the network interface whose address this machine shows to a host.

    Args:
        host: Name or IPv4 address; may be this machine's own.

    Returns:
        Name of the interface, or None where it is the loopback one or unknown.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    if own.startswith('127.'):
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if own in [one.address for one in addresses]), None)
