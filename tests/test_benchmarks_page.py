"""docs/benchmarks.md repeats figures of other pages: each is found in a page that its section names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / 'docs'
PAGE = (DOCS / 'benchmarks.md').read_text(encoding='utf-8')
SECTIONS = dict(re.findall(r'^## (.*)\n((?:(?!^## ).*\n)*)', PAGE, re.MULTILINE))
NUMBER = re.compile(r'\d+(?:[.,]\d+)*(?:e-\d+)?')
NAMES = re.compile(r'`[^`]*`|\]\([^)]*\)|\d{4}-\d{2}-\d{2}|R50|int8|fp\d+|bf16')  # no figures


def numbers(text: str) -> list[str]:
    return NUMBER.findall(NAMES.sub(' ', text))


def rows(section: str) -> list[str]:
    """The rows of all tables without their headings."""
    lines = [line for line in section.splitlines() if line.startswith('|')]
    headings = {index - 1 for index, line in enumerate(lines) if set(line) <= set('|- ')}
    return [line for index, line in enumerate(lines) if index not in headings and not set(line) <= set('|- ')]


@pytest.mark.parametrize('name', [name for name in SECTIONS if name != 'Not run here'])
def test_figures_are_those_of_the_pages(name: str) -> None:
    section = SECTIONS[name]
    sources = re.findall(r'\]\(([^)#]+\.md)', section.partition('\n|')[0])
    assert sources, 'name the page that the figures come from before the table'
    known = {number for link in sources for number in numbers((DOCS / link).read_text(encoding='utf-8'))}
    found = rows(section)
    assert found
    for row in found:
        assert set(numbers(row)) <= known, f'{sorted(set(numbers(row)) - known)} in {row}'


def test_most_tables_are_there() -> None:
    assert len(SECTIONS) >= 12
    assert sum(len(rows(section)) for section in SECTIONS.values()) >= 80
    assert PAGE.count('not run here') > 15
