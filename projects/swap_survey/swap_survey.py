"""Try Fast-iTPN in every method folder of mmdet and mmseg, and write down which work and why others do not.

    python projects/swap_survey/swap_survey.py --out projects/swap_survey/results.md
    python projects/swap_survey/swap_survey.py --out projects/swap_survey/results.md --only fast_rcnn lad  # these again

Of each folder up to three configs are tried, those on ResNet-50 first, until one works: backbone and neck are swapped
as tools/misc/swap_backbone.py does it, then the model is trained for one step and predicts once, on random images.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmitpn.engine.config_utils import host_config_folder, register_host_configs, resolve_config
from mmitpn.models.backbones import ARCHS
from mmitpn.swap import plan_swap, try_model, write_config

# Folders that hold parts of configs, and no method.
NO_METHODS = ('_base_', 'common', 'legacy_1.x')
REASON_LENGTH = 200


@dataclass(frozen=True)
class TrialResult:
    """The result of one config.

    Attributes:
        config: ``FRAMEWORK::NAME``.
        reason: Why it does not work; empty where it does.
    """

    config: str
    reason: str = ''


def method_folders(host: str) -> dict[str, list[str]]:
    """Method folders of a framework, each with its configs, those on ResNet-50 and with short names first.

    Args:
        host: ``mmdet`` or ``mmseg``, installed.

    Raises:
        ValueError: If the framework is not installed.
    """
    root = host_config_folder(host)
    folders: dict[str, list[str]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in NO_METHODS):
        configs = [path for path in folder.glob('*.py') if not path.name.startswith('_')]
        configs.sort(key=lambda path: ('r50' not in path.name, len(path.name), path.name))
        if configs:
            folders[folder.name] = [f'{host}::{folder.name}/{path.name}' for path in configs]
    return folders


def try_folders(
    host: str, *, folders: Collection[str] | None = None, arch: str = 'nano', tries: int = 3, seconds: float = 120
) -> Iterator[list[TrialResult]]:
    """Try the method folders of a framework, in the order of their names.

    Args:
        host: ``mmdet`` or ``mmseg``, installed.
        folders: Names of the folders; None tries all.
        arch: Architecture of the backbone; the smallest shows as much as the others.
        tries: Number of configs of a folder that are tried, until one works.
        seconds: Time limit of one config.

    Yields:
        The results of one folder: the last one works, or none does.
    """
    for folder, configs in method_folders(host).items():
        if folders is not None and folder not in folders:
            continue
        results: list[TrialResult] = []
        for config in configs[:tries]:
            results.append(try_config(config, arch=arch, seconds=seconds))
            if not results[-1].reason:
                break
        yield results


def try_config(config: str, *, arch: str = 'nano', seconds: float = 120) -> TrialResult:
    """Swap the backbone of a config, train it for one step and let it predict, in a process of its own.

    Args:
        config: A path, or ``FRAMEWORK::NAME``.
        arch: Architecture of the backbone.
        seconds: Time limit.
    """
    return TrialResult(config, reason_of_failure(_swap_and_try, config, arch, seconds=seconds))


def reason_of_failure(function: Callable[..., Any], *args: Any, seconds: float) -> str:
    """Call a function in a process of its own.

    Args:
        function: A function of a module.
        *args: Its arguments.
        seconds: Time limit, after which the process is killed.

    Returns:
        Why it failed, in one line; empty if it did not.
    """
    # Forked from a server that has imported the frameworks and run nothing: PyTorch's threads do not survive a fork.
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


# --- the tables -----------------------------------------------------------------------------------------------------


def table_row(results: list[TrialResult]) -> tuple[str, str]:
    """A folder and its row of the table: the config that works, or the first one with its reason."""
    shown = results[-1] if not results[-1].reason else results[0]
    folder, name = shown.config.partition('::')[2].split('/', 1)
    reason = shown.reason.replace(sys.prefix, '...').replace('|', '/').replace('<', '(').replace('>', ')')
    return folder, f'| {folder} | {name.removesuffix(".py")} | {"no" if reason else "yes"} | {reason} |'


def read_tables(text: str) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Commands of an earlier run, and the rows of every framework by folder."""
    commands: list[str] = []
    hosts: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if line.startswith('`python '):
            commands.append(line)
        elif line.startswith('## '):
            hosts[line[3:].partition(':')[0]] = {}
        elif line.startswith('| ') and not line.startswith('| folder '):
            list(hosts.values())[-1][line.split(' | ')[0][2:]] = line
    return commands, hosts


def write_tables(path: Path, command: str, rows_by_host: dict[str, dict[str, str]], *, partly: bool) -> None:
    """Write the tables; after a run of some folders the others keep their rows."""
    commands, hosts = read_tables(path.read_text(encoding='utf-8')) if partly and path.is_file() else ([], {})
    for host, rows in rows_by_host.items():
        hosts[host] = dict(sorted((hosts.get(host, {}) | rows).items()))
    parts = ['# Fast-iTPN in the method folders of mmdet and mmseg', *commands, f'`{command}`']
    for host, rows in hosts.items():
        good = sum(' | yes | ' in line for line in rows.values())
        parts.append(f'## {host}: {good} of {len(rows)} method folders')
        parts.append('\n'.join(['| folder | config | works | why not |', '|---|---|---|---|', *rows.values()]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--host', nargs='+', default=['mmdet', 'mmseg'], choices=('mmdet', 'mmseg'))
    parser.add_argument('--only', nargs='+', metavar='FOLDER', help='these folders only')
    parser.add_argument('--arch', default='nano', choices=tuple(ARCHS), help='architecture (default: nano)')
    parser.add_argument('--tries', type=int, default=3, help='configs of a folder that are tried (default: 3)')
    parser.add_argument('--seconds', type=float, default=120, help='time limit of one config (default: 120)')
    parser.add_argument('--out', type=Path, metavar='FILE.md', help='write the tables there')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    rows_by_host: dict[str, dict[str, str]] = {}
    columns = (TextColumn('{task.description}'), MofNCompleteColumn(), TimeRemainingColumn())
    for host in args.host:
        try:
            folders = [name for name in method_folders(host) if not args.only or name in args.only]
        except ValueError as error:
            sys.stderr.write(f'error: {error}\n')
            return 1
        rows: dict[str, str] = {}
        with Progress(*columns) as progress:
            task = progress.add_task(host, total=len(folders))
            for results in try_folders(host, arch=args.arch, tries=args.tries, seconds=args.seconds, folders=folders):
                rows |= [table_row(results)]
                progress.advance(task)
                last = results[-1]
                progress.print(
                    f'{"no " if last.reason else "yes"} {last.config} {last.reason}', soft_wrap=True, highlight=False
                )
        if rows:
            rows_by_host[host] = rows
    if args.out:
        arguments = sys.argv[1:] if argv is None else argv
        command = shlex.join(['python', 'projects/swap_survey/swap_survey.py', *arguments])
        write_tables(args.out, command, rows_by_host, partly=args.only is not None)
    return 0


if __name__ == '__main__':
    sys.exit(main())
