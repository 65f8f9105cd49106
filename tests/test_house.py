"""The shape of the package: names that mean one thing, words of the field, and which package may import which."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'mmitpn'
# Words that have another name in the field (left) and what it calls them.
GLOSSARY = {
    r'pictur(e|es|ed)\b': 'image',
    r'mend(s|ed|ing)?\b': 'fix',
    r'our reading\b': 'our interpretation',
    r'whole numbers?\b': 'integer',
    r'data sets?\b': 'dataset',
    r'made(-up)? (weights|images|batch)': 'synthetic or random weights',
    r'so many\b': 'at most N',
    r'(is|are) no number': 'NaN or infinite',
    r'(gone|goes|go) on with\b': 'resume',
    r'(?<!ground )(?<!ground-)(?<!ground\n)truth\b(?!ful)': 'ground truth',
    r'(?<!\.)trainings\b': 'training runs',
    r'shares? of the (GEMM|matrix)': 'MFU',
    r'weather\b': 'load, or noise',
    r'optimiser': 'optimizer',
    r'\w*colour\w*': 'color',
    r'\w*(normal|initial|optim|general|regular|serial|organ|visual|quant|token)is(e|ed|es|er|ing|ation)s?\b': '-ize',
}
# A package (or module) of mmitpn, and what it must not import of mmitpn.
FORBIDDEN = {
    'models/layers': ('models/token_reduction', 'models/backbones', 'models/necks', 'models/heads', 'models/detectors'),
    'models/token_reduction': ('models/backbones', 'models/necks', 'models/heads', 'models/detectors'),
    'models/backbones': ('models/necks', 'models/heads', 'models/detectors'),
    'models/necks': ('models/backbones', 'models/heads', 'models/detectors'),
    'ops': ('models', 'checkpoint', 'engine', 'datasets'),
    'checkpoint': ('models', 'engine', 'datasets', 'config_check', 'apis', 'commands'),
    'engine': ('doctor', 'benchmark', 'visualization', 'apis', 'commands'),
    'models': ('engine', 'config_check', 'benchmark', 'visualization', 'swap', 'doctor', 'apis', 'commands', 'weights'),
    'weights': ('models', 'checkpoint', 'engine', 'datasets', 'config_check', 'apis', 'commands'),
    'apis': ('commands', 'swap', 'doctor'),
}


def written_files() -> list[Path]:
    """The files that people read: package, tools, configs, documents, studies, demo with its notebooks."""
    listed = subprocess.run(
        [
            'git',
            'ls-files',
            '-co',
            '--exclude-standard',
            'mmitpn',
            'tools',
            'configs',
            'docs',
            'projects',
            'demo',
            'README.md',
            'CONTRIBUTING.md',
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = listed.stdout.split('\n') if listed.returncode == 0 else []
    found = [ROOT / name for name in names if name.endswith(('.py', '.md', '.sh', '.ipynb'))]
    return [path for path in found if path.is_file()]


def modules() -> list[Path]:
    return [path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts]


def imports(path: Path) -> set[str]:
    """The modules of mmitpn that a file imports, as paths relative to the package without ``.py``."""
    package = path.parent.relative_to(PACKAGE).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
            elif node.module and node.module.partition('.')[0] == 'mmitpn':
                base = ()
            else:
                continue
            rest = tuple((node.module or '').split('.')) if node.module else ()
            parts = (*base, *(rest if node.level else rest[1:]))
            found |= {'/'.join((*parts, alias.name)) for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split('.') for alias in node.names]
            found |= {'/'.join(name[1:]) for name in names if name[0] == 'mmitpn'}
    return found


@pytest.mark.parametrize('word', GLOSSARY)
def test_words_of_the_field(word):
    pattern = re.compile(rf'\b{word}', re.IGNORECASE)
    found = []
    for path in written_files():
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            if pattern.search(line):
                found.append(f'{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}')
    assert not found, f'write {GLOSSARY[word]!r}:\n' + '\n'.join(found)


def test_public_classes_have_different_names():
    files = defaultdict(list)
    for path in modules():
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
                files[node.name].append(path.relative_to(PACKAGE).as_posix())
    assert {name: found for name, found in files.items() if len(found) > 1} == {}


def test_modules_of_a_folder_have_different_names():
    """Modules and packages, also where a file system ignores case, and apart from a plural or an underscore."""
    names = defaultdict(list)
    for path in modules():
        if path.name == '__init__.py':
            if path.parent != PACKAGE:
                names[path.parent.parent].append(path.parent.name)
        else:
            names[path.parent].append(path.stem)
    for folder, found in names.items():
        plain = [name.strip('_').replace('_', '').lower().removesuffix('s') for name in found]
        assert len(plain) == len(set(plain)), f'{folder}: {sorted(found)}'


@pytest.mark.parametrize('package', FORBIDDEN)
def test_no_import_upwards(package):
    """Imports inside of functions count too."""
    files = [path for path in modules() if f'{path.relative_to(PACKAGE).as_posix()}/'.startswith(f'{package}/')]
    assert files
    wrong = [
        f'{path.relative_to(PACKAGE)} imports {one}'
        for path in files
        for one in sorted(imports(path))
        for other in FORBIDDEN[package]
        if f'{one}/'.startswith(f'{other}/')
    ]
    assert wrong == []


def test_the_package_imports_nothing_outside_of_it():
    """Neither tools, tests nor projects, and no cycle between its packages."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.partition('.')[0] for name in names} & {'tools', 'tests', 'projects'}, path


def test_packages_have_no_cycle():
    arrows = defaultdict(set)
    known = {path.relative_to(PACKAGE).parent.as_posix() for path in modules()} - {'.'}
    for path in modules():
        start = path.relative_to(PACKAGE).parent.as_posix()
        for one in imports(path):
            target = next(
                (folder for folder in sorted(known, key=len, reverse=True) if f'{one}/'.startswith(f'{folder}/')), None
            )
            if target and start not in ('.', target) and not start.startswith(f'{target}/'):
                arrows[start].add(target)

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for one in arrows[todo.pop()] - seen:
                seen.add(one)
                todo.append(one)
        return seen

    assert [one for one in sorted(arrows) if one in reach(one)] == []
