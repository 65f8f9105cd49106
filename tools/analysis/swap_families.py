"""Try Fast-iTPN in every method folder of the installed hosts, and write down which work and why others do not.

    python tools/analysis/swap_families.py --out docs/swap_families.md

Of each folder up to three configs are tried, those on ResNet-50 first, until one works: backbone and neck are swapped
as tools/misc/swap_backbone.py does it, then the model is trained for one step and predicts once, on made-up pictures.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmitpn.models.backbones.archs import ARCHS
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


def table(host: str, outcomes: list[list[Outcome]]) -> str:
    """Markdown: one row a folder."""
    rows = ['| folder | config | works | why not |', '|---|---|---|---|']
    for tried in outcomes:
        shown = tried[-1] if not tried[-1].reason else tried[0]
        folder, name = shown.config.partition('::')[2].split('/', 1)
        reason = shown.reason.replace('|', '/').replace('<', '(').replace('>', ')')
        rows.append(f'| {folder} | {name.removesuffix(".py")} | {"no" if reason else "yes"} | {reason} |')
    good = sum(not tried[-1].reason for tried in outcomes)
    return f'## {host}: {good} of {len(outcomes)} method folders\n\n' + '\n'.join(rows) + '\n'


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    tables = []
    columns = (TextColumn('{task.description}'), MofNCompleteColumn(), TimeRemainingColumn())
    for host in args.host:
        try:
            folders = [name for name in host_families(host) if not args.only or name in args.only]
        except ValueError as error:
            sys.stderr.write(f'error: {error}\n')
            return 1
        outcomes = []
        with Progress(*columns) as progress:
            task = progress.add_task(host, total=len(folders))
            for tried in try_families(host, arch=args.arch, tries=args.tries, seconds=args.seconds, folders=folders):
                outcomes.append(tried)
                progress.advance(task)
                last = tried[-1]
                progress.print(
                    f'{"no " if last.reason else "yes"} {last.config} {last.reason}', soft_wrap=True, highlight=False
                )
        tables.append(table(host, outcomes))
    text = '\n'.join(tables)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join(['python', 'tools/analysis/swap_families.py', *(sys.argv[1:] if argv is None else argv)])
        args.out.write_text(
            f'# Fast-iTPN in the method folders of the hosts\n\n`{command}`\n\n{text}', encoding='utf-8'
        )
    return 0


if __name__ == '__main__':
    sys.exit(main())
