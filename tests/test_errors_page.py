"""docs/errors.md: each error text that it quotes is found in the source, so that a changed text changes the page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/errors.md').read_text(encoding='utf-8')
QUOTED = re.compile(r'^\*\*`([^`]+)`\*\*', re.MULTILINE)
ENTRIES = QUOTED.findall(PAGE)
LEAST = 8  # characters of a part between two '...' that is looked up; shorter ones are found everywhere
VARIABLE = '\0'


def text_of(node: ast.expr) -> str | None:
    """The text of a string expression with its variable parts replaced; None for other expressions."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return ''.join(part.value if isinstance(part, ast.Constant) else VARIABLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = text_of(node.left), text_of(node.right)
        return None if sides == (None, None) else ''.join(side or VARIABLE for side in sides)
    return None


def strings_of(tree: ast.AST) -> Iterator[str]:
    """The texts of all string expressions in a program; adjacent literals are one, documentation is left out."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in documentation:
            text = text_of(node)
            if text:
                yield text


@cache
def sources() -> dict[str, str]:
    """Each file of the package and its tools as its string literals, of shell scripts as the lines without comments."""
    found = {}
    for folder in ('mmitpn', 'tools'):
        for path in sorted((ROOT / folder).rglob('*')):
            name = path.relative_to(ROOT).as_posix()
            if '.mim' in path.parts or path.suffix not in ('.py', '.sh'):
                continue
            text = path.read_text(encoding='utf-8')
            if path.suffix == '.py':
                found[name] = '\n'.join(strings_of(ast.parse(text)))
            else:
                lines = (line for line in text.splitlines() if not line.lstrip().startswith('#'))
                found[name] = '\n'.join(lines).replace('\\"', '"')
    return found


def parts_of(quoted: str) -> list[str]:
    return [part for part in (part.strip() for part in quoted.split('...')) if len(part) >= LEAST]


def files_with(quoted: str) -> list[str]:
    """The files that have every part of a quoted text."""
    return [name for name, text in sources().items() if all(part in text for part in parts_of(quoted))]


@pytest.mark.parametrize('quoted', ENTRIES)
def test_quoted_text_is_in_the_source(quoted: str) -> None:
    parts = parts_of(quoted)
    assert max(map(len, parts), default=0) >= 12, 'quote more of it'
    assert files_with(quoted), f'no file has all of {parts}'


def test_the_page_has_entries_once() -> None:
    assert len(ENTRIES) >= 45
    assert len(set(ENTRIES)) == len(ENTRIES)
    assert len(re.findall(r'^## ', PAGE, re.MULTILINE)) >= 10


def test_every_entry_says_what_to_do() -> None:
    """A paragraph follows the quoted text."""
    for entry, answer in zip(ENTRIES, QUOTED.split(PAGE)[2::2], strict=True):
        paragraph = answer.strip().partition('\n\n')[0]
        assert paragraph[:1] not in ('|', '#', ''), entry
        assert len(paragraph.split()) >= 5, entry


def test_links_of_the_page_are_there() -> None:
    for link in re.findall(r'\]\(([^)#\s]+)', PAGE):
        assert '://' in link or (ROOT / 'docs' / link).exists(), link


@pytest.mark.parametrize(
    'text',
    [
        "raise ValueError(f'the neck gives {n} maps, but {name} is {m}')",
        "raise ValueError(f'the neck gives {n}'\n f' maps, but {name} is {m}')",
        "raise ValueError('the neck gives ' + n + ' maps, but ' + name)",
    ],
)
def test_variable_parts_are_left_out(text: str) -> None:
    (line,) = [one for one in strings_of(ast.parse(text)) if one.count(VARIABLE) >= 2][:1]
    assert all(part in line for part in parts_of('the neck gives ... maps, but ...'))


def test_a_changed_text_is_found() -> None:
    assert files_with('the neck gives ... maps, but num_feature_levels is') == ['mmitpn/models/detectors/dino.py']
    assert files_with('the neck gives ... maps, yet num_feature_levels is') == []
