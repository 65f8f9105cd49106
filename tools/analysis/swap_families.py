"""Try Fast-iTPN in every method folder of the installed hosts, and write down which work and why others do not.

    python tools/analysis/swap_families.py --out docs/swap_families.md
    python tools/analysis/swap_families.py --out docs/swap_families.md --only fast_rcnn lad  # these rows again

Of each folder up to three configs are tried, those on ResNet-50 first, until one works: backbone and neck are swapped
as tools/misc/swap_backbone.py does it, then the model is trained for one step and predicts once, on made-up pictures.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmitpn.models.backbones import ARCHS
from mmitpn.swap import Outcome, host_families, try_families


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--host', nargs='+', default=['mmdet', 'mmseg'], choices=('mmdet', 'mmseg'))
    parser.add_argument('--only', nargs='+', metavar='FOLDER', help='these folders only')
    parser.add_argument('--arch', default='nano', choices=tuple(ARCHS), help='size (default: nano)')
    parser.add_argument('--tries', type=int, default=3, help='configs of a folder that are tried (default: 3)')
    parser.add_argument('--seconds', type=float, default=120, help='limit of one config (default: 120)')
    parser.add_argument('--out', type=Path, metavar='FILE.md', help='write the tables there')
    return parser.parse_args(argv)


def row(tried: list[Outcome]) -> tuple[str, str]:
    """A folder and its row of the table."""
    shown = tried[-1] if not tried[-1].reason else tried[0]
    folder, name = shown.config.partition('::')[2].split('/', 1)
    reason = shown.reason.replace(sys.prefix, '...').replace('|', '/').replace('<', '(').replace('>', ')')
    return folder, f'| {folder} | {name.removesuffix(".py")} | {"no" if reason else "yes"} | {reason} |'


def read_rows(text: str) -> tuple[list[str], dict[str, dict[str, str]]]:
    """What an earlier run wrote: its commands, and for every host the rows by folder."""
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


def write_tables(path: Path, command: str, found: dict[str, dict[str, str]], *, partly: bool) -> None:
    """Write the tables; after a run of some folders the others keep their rows."""
    commands, hosts = read_rows(path.read_text(encoding='utf-8')) if partly and path.is_file() else ([], {})
    for host, rows in found.items():
        hosts[host] = dict(sorted((hosts.get(host, {}) | rows).items()))
    parts = ['# Fast-iTPN in the method folders of the hosts', *commands, f'`{command}`']
    for host, rows in hosts.items():
        good = sum(' | yes | ' in line for line in rows.values())
        parts.append(f'## {host}: {good} of {len(rows)} method folders')
        parts.append('\n'.join(['| folder | config | works | why not |', '|---|---|---|---|', *rows.values()]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    found: dict[str, dict[str, str]] = {}
    columns = (TextColumn('{task.description}'), MofNCompleteColumn(), TimeRemainingColumn())
    for host in args.host:
        try:
            folders = [name for name in host_families(host) if not args.only or name in args.only]
        except ValueError as error:
            sys.stderr.write(f'error: {error}\n')
            return 1
        rows: dict[str, str] = {}
        with Progress(*columns) as progress:
            task = progress.add_task(host, total=len(folders))
            for tried in try_families(host, arch=args.arch, tries=args.tries, seconds=args.seconds, folders=folders):
                rows |= [row(tried)]
                progress.advance(task)
                last = tried[-1]
                progress.print(
                    f'{"no " if last.reason else "yes"} {last.config} {last.reason}', soft_wrap=True, highlight=False
                )
        if rows:
            found[host] = rows
    if args.out:
        command = shlex.join(['python', 'tools/analysis/swap_families.py', *(sys.argv[1:] if argv is None else argv)])
        write_tables(args.out, command, found, partly=args.only is not None)
    return 0


if __name__ == '__main__':
    sys.exit(main())
