"""Which method folders of an installed host take Fast-iTPN: each config is tried in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmitpn.engine.host_configs import host_config_folder, register_host_configs, resolve_config

from .plan import plan_swap
from .trial import try_model
from .write import write_config

# Folders that hold parts of configs, and no method.
NO_METHODS = ('_base_', 'common', 'legacy_1.x')
REASON_LENGTH = 200


@dataclass(frozen=True)
class Outcome:
    """What became of one config.

    Attributes:
        config: ``HOST::NAME``.
        reason: Why it does not work; empty where it does.
    """

    config: str
    reason: str = ''


def host_families(host: str) -> dict[str, list[str]]:
    """Method folders of a host, each with its configs, those on ResNet-50 and with short names first.

    Args:
        host: ``mmdet`` or ``mmseg``, installed.

    Raises:
        ValueError: If the host is not installed.
    """
    root = host_config_folder(host)
    families: dict[str, list[str]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in NO_METHODS):
        found = [path for path in folder.glob('*.py') if not path.name.startswith('_')]
        found.sort(key=lambda path: ('r50' not in path.name, len(path.name), path.name))
        if found:
            families[folder.name] = [f'{host}::{folder.name}/{path.name}' for path in found]
    return families


def try_families(
    host: str,
    *,
    folders: Collection[str] | None = None,
    arch: str = 'nano',
    tries: int = 3,
    seconds: float = 120,
) -> Iterator[list[Outcome]]:
    """Try the folders of a host, in order of their names.

    Args:
        host: ``mmdet`` or ``mmseg``, installed.
        folders: Names of those to try; None tries all.
        arch: A name of the family; the smallest tells as much as the others.
        tries: Configs of a folder that are tried, until one works.
        seconds: After so long a config counts as not working.

    Yields:
        The outcomes of one folder: the last one works, or none does.
    """
    for folder, configs in host_families(host).items():
        if folders is not None and folder not in folders:
            continue
        outcomes: list[Outcome] = []
        for config in configs[:tries]:
            outcomes.append(attempt(config, arch=arch, seconds=seconds))
            if not outcomes[-1].reason:
                break
        yield outcomes


def attempt(config: str, *, arch: str = 'nano', seconds: float = 120) -> Outcome:
    """Swap the backbone of a config, train it for one step and let it predict, in a process of its own.

    Args:
        config: A path, or ``HOST::NAME``.
        arch: A name of the family.
        seconds: After so long it counts as not working.
    """
    return Outcome(config, reason_of_failure(_swap_and_try, config, arch, seconds=seconds))


def reason_of_failure(function: Callable[..., Any], *args: Any, seconds: float) -> str:
    """Call a function in a process of its own.

    Args:
        function: A function of a module.
        *args: What it is given.
        seconds: After so long the process is killed.

    Returns:
        Why it failed, in one line; empty if it did not.
    """
    # Forked from a server that has imported the hosts and run nothing: PyTorch's threads do not survive a fork.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([f'{host}.models' for host in ('mmdet', 'mmseg') if find_spec(host)] + [__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(function, args, sender), daemon=True)
    process.start()
    sender.close()
    try:
        reason = receiver.recv() if receiver.poll(seconds) else f'not done after {seconds:.0f} s'
    except EOFError:
        process.join()
        reason = f'the process ended with status {process.exitcode}'
    process.kill()
    process.join()
    return reason


def _call(function: Callable[..., Any], args: tuple, sender: Connection) -> None:
    with Path(os.devnull).open('w', encoding='utf-8') as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        function(*args)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the reason
        text = ' '.join(f'{type(error).__name__}: {error}'.split())
        sender.send(text if len(text) <= REASON_LENGTH else f'{text[:REASON_LENGTH]}...')
    else:
        sender.send('')


def _swap_and_try(config: str, arch: str) -> None:
    register_host_configs()
    cfg = Config.fromfile(resolve_config(config))
    init_default_scope(cfg.get('default_scope', config.partition('::')[0]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'swapped.py'
        options, _ = plan_swap(cfg, arch=arch)
        write_config(config, options, out, comment=config)
        try_model(out)
