"""Where the processes of a distributed run meet: what Slurm's variables say, and gloo's network interface."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from collections.abc import Mapping, MutableMapping

from mmengine.logging import print_log

LOOPBACK = '127.0.0.1'
# Ports that follow from a job's number: below those that systems hand out by themselves (from 32768 on Linux).
FIRST_PORT, PORTS = 12000, 20000
STEPS = 16  # steps of one job that run at once and have ports of their own
SIOCGIFADDR = 0x8915  # asks for the IPv4 address of an interface


def read_slurm(env: Mapping[str, str], *, port: int | None = None) -> dict[str, str]:
    """Say what torch reads from the environment, from the variables that ``srun`` sets.

    Args:
        env: Environment of a process that ``srun`` started. A ``MASTER_ADDR`` or ``MASTER_PORT`` in it holds.
        port: Port to meet at, before that of the environment. With neither it follows from the numbers of job and step.

    Returns:
        ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. The processes meet on the first
        host of the step, by the loopback address where it has no other.

    Raises:
        ValueError: If the process was not started by ``srun``, or the first host cannot be told.
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


def use_gloo_interface(env: MutableMapping[str, str]) -> None:
    """Let gloo use the interface that leads to ``MASTER_ADDR``.

    Left alone, gloo takes the address that this machine's own name stands for. Where that is a loopback address, as on
    a fresh Debian, processes on other machines cannot connect to it.

    Args:
        env: Environment with ``MASTER_ADDR``; ``GLOO_SOCKET_IFNAME`` is set in it, unless it is there already or the
            way to ``MASTER_ADDR`` does not leave this machine.
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
        Name of the interface, or None where it is the loopback one or cannot be told.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    if own.startswith('127.'):
        return None
    return next((name for _, name in socket.if_nameindex() if _address(name) == own), None)


def _address(interface: str) -> str | None:
    """Look up the IPv4 address of an interface; None if it has none."""
    import fcntl  # not on every system

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack('256s', interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(found[20:24])
