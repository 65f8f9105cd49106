"""MkDocs hook: what the documents link to outside of ``docs/`` becomes part of the site, and ``llms.txt`` is written.

A link such as ``../configs/dino/README.md`` works on GitHub as it is. Here the Markdown files and notebooks of the
repository become pages and other linked files are copied, at the path that they have in the repository; files of
``docs/`` lie one folder higher, and the root's README is ``overview``. Links are rewritten to that, before MkDocs
checks them.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# The Markdown files and notebooks outside of docs/ that are pages.
PAGES = ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'demo/*.md', 'configs/**/*.md', 'projects/**/*.md')
PAGES += ('demo/notebooks/*.ipynb',)
# Files that browsers would store and not show: they are served as text, under their name with .txt appended.
STORED = {'.py', '.sh', '.log', '.yml'}
LINK = re.compile(r'(?<=\]\()(?!\w+:|#|/)([^)#\s]+)')  # the path of a Markdown link or image, without its anchor
NAMED = re.compile(r'\[[\w./]+\.md\]\(([^)#\s]+)')  # a link whose text is the name of its page's file
ROW = re.compile(r'^\| \[[^]]*\]\(([^)#]+)\) \| (.+) \|$', flags=re.MULTILINE)  # of a table of pages
# As Sphinx marks names in docstrings: of `~a.b.c` it shows c, of `.c` too.
ROLE = re.compile(r':(?:attr|class|func|meth|mod):<code>(?:~[\w.]*\.(?=\w)|\.(?=\w))?')
SKIPPED = ('#', '|', '<', '!', ':::', '- ', '**')  # how blocks begin that are no paragraph of text

# Source of a page -> what a table of pages says about it (docs/README.md has one), or the first sentence of its text.
summaries: dict[str, str] = {}
navigation: list[Navigation] = []


def to_site(path: str) -> str:
    """The source path in the site of a file of the repository."""
    if path.endswith('.ipynb'):
        return f'{path.removesuffix(".ipynb")}.md'
    return 'overview.md' if path == 'README.md' else path.removeprefix('docs/')


def find_target(link: str, page: Path) -> str | None:
    """The file of the repository that a link names, None for none. A link to a folder means the README in it."""
    target = (page.parent / link).resolve()
    if target.is_dir():
        target /= 'README.md'
    inside = target.is_file() and target.is_relative_to(ROOT)
    return target.relative_to(ROOT).as_posix() if inside else None


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside of ``docs/``, and the files that any page links to."""

    def add(path: str) -> None:
        if files.get_file_from_path(to_site(path)) is None:
            files.append(File.generated(config, to_site(path), abs_src_path=str(ROOT / path)))

    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            add(path.relative_to(ROOT).as_posix())
    for page in files.documentation_pages():
        source = Path(page.abs_src_path)
        for link in LINK.findall(source.read_text(encoding='utf-8')):
            if target := find_target(link, source):
                add(target)
    for file in files:
        if Path(file.src_uri).suffix in STORED and file.inclusion.is_included():
            file.dest_uri += '.txt'
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:  # noqa: ARG001  MkDocs passes names
    """Point the links of a page at their files in the site, and keep what it says about pages for ``llms.txt``.

    A link that is called by the name of a file, as on GitHub, is called by the title of the page here.
    """
    folder = posixpath.dirname(page.file.src_uri)
    if page.file.abs_src_path.endswith('.ipynb'):
        markdown = write_notebook(markdown, Path(page.file.abs_src_path).relative_to(ROOT).as_posix())

    def give_title(match: re.Match) -> str:
        target = find_target(match[1], Path(page.file.abs_src_path))
        file = None if target is None else files.get_file_from_path(to_site(target))
        return match[0] if file is None or file.page is None else f'[{file.page.title}]({match[1]}'

    def move(match: re.Match) -> str:
        target = find_target(match[1], Path(page.file.abs_src_path))
        return match[0] if target is None else posixpath.relpath(to_site(target), folder or '.')

    summaries.setdefault(page.file.src_uri, summarize(markdown))
    if page.file.src_uri.startswith(('api/', 'CHANGELOG')):
        page.meta['search'] = {'boost': 0.5}  # the search lists guides first
    markdown = LINK.sub(move, NAMED.sub(give_title, markdown))
    if page.file.name == 'index':
        summaries.update({posixpath.normpath(f'{folder or "."}/{link}'): text for link, text in ROW.findall(markdown)})
    return markdown


def on_page_content(html: str, page: Page, config: Any, files: Files) -> str:  # noqa: ARG001
    """Remove the marks of Sphinx from the docstrings in a page."""
    return ROLE.sub('<code>', html)


def write_notebook(content: str, path: str) -> str:
    """The cells of a notebook as Markdown, with a line below the title that says where its file is."""
    title, *cells = json.loads(content)['cells']
    title, _, introduction = ''.join(title['source']).partition('\n')
    parts = [title, introduction, f'*The notebook `{path}` of a checkout, without its outputs.*']
    for cell in cells:
        text = ''.join(cell['source'])
        parts.append(f'```python\n{text}\n```' if cell['cell_type'] == 'code' else text)
    return '\n\n'.join(parts) + '\n'


def summarize(markdown: str) -> str:
    """The first sentence of the first paragraph, as text without links."""
    markdown = re.sub(r'^```.*?^```', '', markdown, flags=re.MULTILINE | re.DOTALL)
    blocks = (block.strip() for block in re.split(r'\n\s*\n', markdown))
    paragraph = next((block for block in blocks if block and not block.startswith(SKIPPED)), '')
    text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', ' '.join(paragraph.split()))
    return re.split(r'(?<=[^.][.?!])\s', text, maxsplit=1)[0].rstrip(':')


def on_nav(nav: Navigation, config: Any, files: Files) -> None:  # noqa: ARG001
    """Keep the navigation, in the order of which ``llms.txt`` lists the pages."""
    navigation[:] = [nav]


def on_post_build(config: Any) -> None:
    """Write ``llms.txt`` (llmstxt.org): title, one sentence, and each page with a line on what it says."""
    lines = [f'# {config.site_name}', '', f'> {config.site_description}', '', '## Guides', '']
    for item in sorted(navigation[0].items, key=lambda item: item.is_section):  # pages first
        lines += ['', f'## {item.title}', ''] if item.is_section else []
        lines += list_pages(item)
    (Path(config.site_dir) / 'llms.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def list_pages(item: Any) -> list[str]:
    """A line for a page, or for each page of a section and of the sections in it."""
    if not item.is_page:
        return [line for child in item.children for line in list_pages(child)]
    summary = summaries[item.file.src_uri]
    return [f'- [{item.title}]({item.file.url})' + (f': {summary}' if summary else '')]
