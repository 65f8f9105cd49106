"""List and download weights by name.

    mmitpn weights list [--all] [--json]
    mmitpn weights get fast-itpn-b         # download and check, or check what is here
    mmitpn weights path fast-itpn-b        # print the path of the file, for scripts; downloads it if it is not here

Files are kept below ~/.cache/mmitpn/weights, or $MMITPN_HOME/weights. hf://OWNER/NAME/FILE is a name too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from mmitpn.weights import WEIGHTS, WeightsEntry, cache_folder, find_local_file, find_weights, resolve_weights
from mmitpn.weights.download import HUGGING_FACE, read_record
from mmitpn.weights.zoo import AUTHORS_LICENSE, SCHEME

UNKNOWN = 'unknown'
WIDTH = 150  # of the table where the output is no terminal


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    listing = commands.add_parser('list', help='a table of the names')
    listing.add_argument('--all', action='store_true', help='also the original iTPN of 2023')
    listing.add_argument('--json', action='store_true', help='every fact that is known, as JSON')
    get = commands.add_parser('get', help='download weights, or check the file that is here')
    get.add_argument('names', nargs='+', metavar='NAME')
    path = commands.add_parser('path', help='print the path of the file')
    path.add_argument('name', metavar='NAME')
    return parser.parse_args(argv)


def format_size(size: int | None, about: int | None = None) -> str:
    """A number of bytes in MB."""
    if size is not None:
        return f'{size / 1e6:.1f} MB'
    return UNKNOWN if about is None else f'about {about / 1e6:.0f} MB'


def _local(entry: WeightsEntry) -> Path:
    return find_local_file(f'{SCHEME}{entry.name}')


def _top1(entry: WeightsEntry) -> str:
    if entry.config is not None:  # a detector
        return '-'
    size = f' at {entry.top1_size}' if entry.top1_size else ''
    return UNKNOWN if entry.top1 is None else f'{entry.top1}{size}'


def to_json(entry: WeightsEntry) -> dict[str, object]:
    """Every fact about an entry, and where its file lies."""
    path = _local(entry)
    facts = {**asdict(entry), 'family': entry.family, 'sources': entry.sources}
    return {**facts, 'path': str(path), 'is_here': path.is_file()}


def list_weights(entries: Sequence[WeightsEntry], console: Console) -> None:
    """Print the table of weights."""
    name = Column('name', no_wrap=True, min_width=max(len(entry.name) for entry in entries))
    table = Table(name, 'arch', 'params', 'pre-training', 'native size', 'top-1', 'file size', 'here')
    for entry in entries:
        path = _local(entry)
        here = path.is_file()
        table.add_row(
            entry.name,
            f'{entry.class_name} {entry.arch}',
            f'{entry.params:g} M' if entry.params else UNKNOWN,
            entry.pretraining,
            str(entry.native_size or UNKNOWN),
            _top1(entry),
            format_size(path.stat().st_size if here else entry.bytes, entry.about_bytes),
            'yes' if here else 'no',
        )
    console.print(table)
    console.print(
        f'top-1: ImageNet-1K in percent after fine-tuning, as published. Files: {cache_folder() / "weights"}\n'
        f'License: {AUTHORS_LICENSE}. Download: mmitpn weights get NAME. Use: --pretrained NAME.\n'
        'mmitpn weights list --all also shows the original iTPN.',
        soft_wrap=True,
        highlight=False,
    )


def get(name: str) -> None:
    """Download weights, or check the file that is here, and print what is known of it."""
    path = Path(resolve_weights(_as_name(name), recheck=True))
    entry = None if name.startswith(HUGGING_FACE) else find_weights(name)
    facts = [] if entry is None else [f'{entry.class_name} {entry.arch}; {entry.pretraining}', entry.remark]
    facts.append(format_size(path.stat().st_size))
    if entry is None or entry.shipped is None:
        known = entry.recorded_by if entry and entry.sha256 else 'recorded at its first use, compared from now on'
        facts.append(f'SHA-256 {read_record(path).get("sha256", UNKNOWN)} ({known})')
    facts.append(f'license: {"see its page on Hugging Face" if entry is None else entry.license}')
    sys.stdout.write(f'{name}: {path}\n' + ''.join(f'  {fact}\n' for fact in facts if fact))


def _as_name(name: str) -> str:
    """A name of the command line, which a file in the current folder does not hide."""
    return name if name.startswith((SCHEME, HUGGING_FACE)) else f'{SCHEME}{find_weights(name).name}'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 if a file cannot be had, 2 for an unknown name."""
    args = parse_args(argv)
    names = {'list': (), 'get': getattr(args, 'names', ()), 'path': (getattr(args, 'name', ''),)}[args.command]
    try:
        for name in names:
            find_local_file(_as_name(name))
    except ValueError as error:
        sys.stderr.write(f'error: {error}\n')
        return 2
    try:
        if args.command == 'get':
            for name in names:
                get(name)
        elif args.command == 'path':
            sys.stdout.write(f'{resolve_weights(_as_name(args.name))}\n')
        else:
            entries = [entry for entry in WEIGHTS.values() if args.all or entry.class_name != 'ITPN']
            if args.json:
                sys.stdout.write(json.dumps([to_json(entry) for entry in entries], indent=2) + '\n')
            else:
                list_weights(entries, Console(width=None if sys.stdout.isatty() else WIDTH))
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f'error: {error}\n')
        return 1
    return 0
