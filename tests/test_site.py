"""The documentation site: it builds without a warning, links lead somewhere, and what users look for is found."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import mmitpn

ROOT = Path(__file__).parents[1]
# Modules of mmitpn.apis and mmitpn.ops that are parts of others there, or whose public names are those of mmitpn.
INNER = {
    'mmitpn.apis.export',
    'mmitpn.apis.predictor',
    'mmitpn.apis.report_collector',
    'mmitpn.apis.report_figures',
    'mmitpn.apis.report_page',
    'mmitpn.apis.results',
    'mmitpn.ops.deformable_attention_triton',
    'mmitpn.ops.sampling',
}
# What users type into the search, and a page that answers.
SEARCHES = {
    'inference': 'predict.html',
    'ground truth': 'report.html',
    'bf16': 'recipes.html',
    'freeze': 'recipes.html',
    'notebook': 'demo/notebooks/own_data.html',
    'TensorRT': 'tensorrt.html',
    'weights': 'weights.html',
    'resume': 'faults.html',
}


class Site:
    """The built site.

    Attributes:
        folder: Where it is.
        log: What MkDocs printed.
        status: Exit status of MkDocs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)]
        environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}  # an advertisement of the theme's authors
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=environment
        )
        self.log = done.stdout + done.stderr
        self.status = done.returncode

    @cached_property
    def pages(self) -> dict[Path, Html]:
        """File of a page -> what is in it."""
        return {path: Html(path.read_text(encoding='utf-8')) for path in sorted(self.folder.rglob('*.html'))}

    @cached_property
    def reference(self) -> set[str]:
        """The anchors of the API reference: the names that it describes."""
        return {anchor for path, page in self.pages.items() if path.parent.name == 'api' for anchor in page.anchors}


class Html(HTMLParser):
    """Links and anchors of a page.

    Args:
        text: The page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ('href', 'src') and value is not None:
                self.links.add(value)
            elif name == 'id' and value:
                self.anchors.add(value)


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp('site'))


def test_it_builds_without_a_warning(site: Site) -> None:
    assert site.status == 0, site.log
    assert [line for line in site.log.splitlines() if not line.startswith('INFO')] == []


# --- links ----------------------------------------------------------------------------------------------------------
def dead_links(pages: dict[Path, Html], folder: Path) -> Iterator[str]:
    """The relative links of pages that lead to no file, or to no anchor of it."""
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == '404.html':  # the links of 404.html start at the root
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= 'index.html'
            if not target.is_file() or not target.is_relative_to(folder):
                yield f'{path.relative_to(folder)}: {link} is no file'
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f'{path.relative_to(folder)}: {link} has no such anchor'


def test_every_link_and_image_is_there(site: Site) -> None:
    assert list(dead_links(site.pages, site.folder)) == []
    images = {Path(link).name for page in site.pages.values() for link in page.links if link.endswith(('png', 'jpg'))}
    documents = {path.name for path in (ROOT / 'docs').iterdir() if path.suffix in ('.png', '.jpg')}
    assert documents <= images


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / 'a.html'
    page.write_text('<a id="x" href="#x"></a><a href="#y"></a><a href="b.html"></a><img src="c.png">')
    found = sorted(dead_links({page: Html(page.read_text())}, tmp_path))
    assert [line.split()[1] for line in found] == ['#y', 'b.html', 'c.png']


def test_nothing_is_loaded_from_elsewhere(site: Site) -> None:
    """Scripts, styles and images of the pages are files of the site."""
    for path, page in site.pages.items():
        text = path.read_text(encoding='utf-8')
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]*)"', text)
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="([^"]*)"', text)
        assert page.links.issuperset(loaded)
        assert [link for link in loaded if urlsplit(link).netloc] == [], path


# --- API reference --------------------------------------------------------------------------------------------------
def registered() -> dict[str, str]:
    """Class or function that a decorator registers -> its module, read and not imported."""
    found = {}
    for path in (ROOT / 'mmitpn').rglob('*.py'):
        if '.mim' in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            decorators = getattr(node, 'decorator_list', ())
            if any('.register_module(' in ast.unparse(decorator) for decorator in decorators):
                found[node.name] = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    return found


def test_the_decorators_are_what_is_registered() -> None:
    """In the registries of mmitpn, with the frameworks that are installed here."""
    for framework in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(framework)
    from mmengine.registry import Registry

    from mmitpn import registry

    there = {}
    for one in vars(registry).values():
        if isinstance(one, Registry):
            one.import_from_location()
            there |= {name: member.__module__ for name, member in one.module_dict.items()}
    assert there == registered()


def public_names() -> set[str]:
    """The full names that the API reference must have, beside what is registered."""
    names = {f'mmitpn.{name}' for name in mmitpn.__all__ if name != '__version__'}
    for package in ('mmitpn.checkpoint', 'mmitpn.models.token_reduction', 'mmitpn.datasets'):
        names |= {f'{package}.{name}' for name in import_module(package).__all__}
    for package in ('apis', 'ops'):
        for path in (ROOT / 'mmitpn' / package).glob('*.py'):
            module = f'mmitpn.{package}.{path.stem}'
            if path.stem.startswith('__') or module in INNER:
                continue
            for node in ast.parse(path.read_text(encoding='utf-8')).body:
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith('_'):
                    names.add(f'{module}.{node.name}')
    return names


def test_the_reference_has_every_public_name(site: Site) -> None:
    names = public_names()
    assert len(names) > 150  # the files were read
    assert sorted(names - site.reference) == []


def test_the_reference_has_every_registered_name(site: Site) -> None:
    """Under a name that is imported, such as mmitpn.FastITPN: no two classes of the package have one name."""
    names = {anchor.rpartition('.')[2] for anchor in site.reference if anchor.startswith('mmitpn.')}
    assert sorted(registered().keys() - names) == []


def test_the_reference_has_no_private_name(site: Site) -> None:
    private = {name for name in site.reference if name.startswith('mmitpn.') and re.search(r'\._(?!_)', name)}
    assert private == set()


def test_the_marks_of_sphinx_are_gone(site: Site) -> None:
    """``:class:`~a.b.c``` shows ``c``."""
    marked = re.compile(r':(?:attr|class|func|meth|mod):|<code>~\w')
    pages = {path: path.read_text(encoding='utf-8') for path in site.pages if path.parent.name == 'api'}
    assert {path.name: marked.findall(text) for path, text in pages.items() if marked.search(text)} == {}
    assert '<code>ExportedModel</code>' in pages[site.folder / 'api/predict.html']


def test_examples_are_blocks_of_code(site: Site) -> None:
    """A section that griffe does not know, such as ``Example:``, becomes text in which ``>>>`` are quotations."""
    for path in site.pages:
        assert 'class="example"' not in path.read_text(encoding='utf-8'), path.name
    text = (site.folder / 'api/predict.html').read_text(encoding='utf-8')
    assert re.search(r'class="gp">&gt;&gt;&gt; ', text)


# --- search and llms.txt --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(('word', 'page'), SEARCHES.items(), ids=SEARCHES)
def test_the_search_finds(site: Site, word: str, page: str) -> None:
    index = json.loads((site.folder / 'search' / 'search_index.json').read_text(encoding='utf-8'))
    found = {
        one['location'].partition('#')[0]
        for one in index['docs']
        if re.search(rf'\b{word}\b', f'{one["title"]} {one["text"]}', flags=re.IGNORECASE)
    }
    assert page in found


def test_llms_txt_names_every_page(site: Site) -> None:
    text = (site.folder / 'llms.txt').read_text(encoding='utf-8')
    lines = text.splitlines()
    assert lines[0] == '# mmitpn'
    assert lines[2].startswith('> ')
    listed = re.findall(r'^- \[[^]]+\]\(([^)]+)\)', text, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    pages = {path.relative_to(site.folder).as_posix() for path in site.pages} - {'404.html'}
    assert set(listed) == pages
