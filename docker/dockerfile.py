"""Reads a Dockerfile and the ignore file beside the context: as much of both as this project's files use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

KNOWN = ('ARG', 'FROM', 'ENV', 'RUN', 'COPY', 'WORKDIR', 'USER', 'ENTRYPOINT', 'CMD')
VARIABLE = re.compile(r'\$(?:(\w+)|\{(\w+)(?::-([^}]*))?\})')


@dataclass(frozen=True)
class Instruction:
    """One step.

    Args:
        line: Its first line in the file, from 1.
        name: ``RUN``, ``COPY`` ...
        value: What follows the name, continued lines joined.
    """

    line: int
    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """The value's words, or the items of a JSON list."""
        return json.loads(self.value) if self.value.startswith('[') else self.value.split()

    @property
    def pairs(self) -> list[tuple[str, str | None]]:
        """Names and values of an ``ARG`` or ``ENV``; None where an ``ARG`` has no default."""
        found = re.findall(r'(\w+)(?:=("[^"]*"|\S*))?(?:\s+|$)', self.value)
        return [(name, value.strip('"') if f'{name}=' in self.value else None) for name, value in found]


def read_dockerfile(path: Path) -> list[Instruction]:
    """Read a Dockerfile.

    Args:
        path: The file.

    Returns:
        list: Its instructions in their order.

    Raises:
        ValueError: If it has an instruction or a flag that is not known here.
    """
    steps: list[Instruction] = []
    start, text = 0, ''
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith('#'):
            continue
        start = start if text else number
        text += stripped.removesuffix('\\')
        if stripped.endswith('\\'):
            continue
        name, _, value = text.partition(' ')
        if name not in KNOWN or value.lstrip().startswith('--'):
            raise ValueError(f'{path}:{start}: {text!r} is not known here; allowed: {", ".join(KNOWN)}, without flags')
        steps.append(Instruction(start, name, value.strip()))
        text = ''
    return steps


def expand(text: str, values: Mapping[str, str]) -> str:
    """Put the values of variables into a text; ``${NAME:-default}`` has a default, an unknown name is empty."""
    return VARIABLE.sub(lambda found: values.get(found[1] or found[2]) or found[3] or '', text)


def read_ignored(path: Path) -> list[tuple[re.Pattern[str], bool]]:
    """Read an ignore file.

    Args:
        path: The file.

    Returns:
        list: For each line a pattern for paths relative to the context, and whether it leaves them out (``!`` takes
        them in again).
    """
    rules = []
    for line in path.read_text(encoding='utf-8').splitlines():
        text = line.strip()
        if text and not text.startswith('#'):
            rules.append((_pattern(text.removeprefix('!').strip('/')), not text.startswith('!')))
    return rules


def _pattern(text: str) -> re.Pattern[str]:
    """What a line of an ignore file matches: the path itself, and all below it."""
    parts = {'**/': '(?:.*/)?', '**': '.*', '*': '[^/]*', '?': '[^/]'}
    made = ''.join(parts.get(part) or re.escape(part) for part in re.split(r'(\*\*/|\*\*|\*|\?)', text))
    return re.compile(f'{made}(?:/.*)?')


def is_ignored(name: str, rules: list[tuple[re.Pattern[str], bool]]) -> bool:
    """Whether a path of the context is left out: the last line that matches decides."""
    return next((out for pattern, out in reversed(rules) if pattern.fullmatch(name)), False)


def files_of_context(context: Path, rules: list[tuple[re.Pattern[str], bool]]) -> Iterator[str]:
    """Names of the files, and links, of a context that the ignore file leaves in, relative to the context."""
    folders = [context]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            name = path.relative_to(context).as_posix()
            if path.is_dir() and not path.is_symlink():
                # A line with ! may take in again what lies inside a folder that is left out.
                if not is_ignored(name, rules) or any(not out for _, out in rules):
                    folders.append(path)
            elif not is_ignored(name, rules):
                yield name


def copied(words: list[str], files: list[str]) -> list[tuple[str, str]]:
    """What a ``COPY`` copies.

    Args:
        words: Its sources and, last, its target.
        files: Names of the context's files.

    Returns:
        list: Pairs of a file's name in the context and its place, relative to the working folder or absolute.

    Raises:
        FileNotFoundError: If a source is not in the context, or the ignore file leaves it out.
    """
    *sources, target = words
    pairs = []
    for source in sources:
        name = source.strip('/').removeprefix('./')
        inside = [(file, file) for file in files] if name == '.' else []
        inside = inside or [(file, file.removeprefix(f'{name}/')) for file in files if file.startswith(f'{name}/')]
        if inside:
            pairs += [(file, f'{target}/{rest}') for file, rest in inside]
        elif name in files:
            folder = target.endswith('/') or len(sources) > 1
            pairs.append((name, f'{target}/{Path(name).name}' if folder else target))
        else:
            raise FileNotFoundError(f'COPY {source}: not in the context, or left out by its ignore file')
    return pairs
