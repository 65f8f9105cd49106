"""Commands in the documents: they parse, the configs, files and settings that they name are there, and some are run.

Every line of a command block, and every command in the text, that starts with ``mmitpn``, ``python FILE`` or
``bash FILE``, in README.md, docs/ and the READMEs of configs, projects and demo. Words in capitals (CONFIG, CHECKPOINT,
MY_FOLDER) stand for something of the reader's. A command without such words is run in an empty folder, or has a reason
not to be.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest

from mmitpn.__main__ import COMMANDS
from mmitpn.commands import data, train
from mmitpn.commands import test as testing
from mmitpn.engine.cli import load_config
from mmitpn.engine.config_utils import register_host_configs, resolve_config
from mmitpn.ops import install as operators
from mmitpn.weights import find_weights

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'demo/README.md', *sorted((ROOT / 'docs').glob('*.md'))]
PAGES += sorted(path for folder in ('configs', 'projects') for path in (ROOT / folder).glob('*/README.md'))
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r'(?:^    \S.*\n)+', re.MULTILINE)
PROGRAM = r'(?:mmitpn|python (?:-m mmitpn(?:\.ops)?|-m pytest|\S+\.py)|bash \S+/\S+\.sh)'
COMMAND = re.compile(rf'^(?:[A-Z_]+=\S+ +)*{PROGRAM}(?: .*)?$')
ASSIGNMENT = re.compile(r'^[A-Z_]+=(?:\(.*?\)|"[^"]*"|[^\s("]+)[ \t]*(?:#.*)?$', re.MULTILINE | re.DOTALL)
INLINE = re.compile(rf'(?<!\*)`({PROGRAM} [^`]*)`')  # in bold: an error text
# Scripts that import a package which the tests may lack.
NEEDS = {'demo/app.py': 'gradio', 'demo/serve.py': 'litserve'}
# Files of this repository; anything else may be the reader's.
FOLDERS = ('configs/', 'tools/', 'projects/', 'tests/', 'docker/', 'docs/', 'demo/')
# Keys of --cfg-options that are read where they are set, and stand in no config.
READ = {'classes', 'released'}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


class Found(Exception):  # noqa: N818 - it is no error
    """A program has made its parser, which is the argument, and is about to parse."""


@cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of a command (``train``, ``data check``), or of a script by its path; the program is stopped there."""

    def stop(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise Found(self)

    path = ROOT / program
    patches = (
        mock.patch.object(argparse.ArgumentParser, 'parse_args', stop),
        mock.patch.object(sys, 'argv', [program]),
        mock.patch.object(sys, 'path', [str(path.parent), *sys.path]),
        mock.patch.dict(os.environ),
    )
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        try:
            if path.is_file():
                runpy.run_path(str(path), run_name='__main__')
            else:
                name, _, action = program.partition(' ')
                import_module(data.OTHERS[action] if action else COMMANDS[name][0]).main([])
        except Found as found:
            return found.args[0]
    raise AssertionError(f'{program} parses no arguments')


def split_call(words: list[str]) -> tuple[str, list[str]]:
    """A call as the program that parses (see `parser_of`; '' where it is not looked at) and its arguments.

    Raises:
        ValueError: If a command or a file does not exist.
    """
    program, *rest = words
    if program == 'python' and rest[:2] == ['-m', 'mmitpn']:
        program, rest = 'mmitpn', rest[2:]
    if program == 'mmitpn':
        if rest[:1] == ['COMMAND']:
            return '', rest[1:]
        if not rest or rest[0] not in COMMANDS:
            raise ValueError(f'there is no command {rest[:1]}')
        if rest[0] == 'data' and rest[1:2] and rest[1] in data.OTHERS:
            return f'data {rest[1]}', rest[2:]
        return rest[0], rest[1:]
    if rest[:2] == ['-m', 'mmitpn.ops']:
        if not hasattr(operators, rest[2]):
            raise ValueError(f'mmitpn.ops has no {rest[2]}')
        return '', []
    if rest[:2] == ['-m', 'pytest']:
        return '', rest[2:]
    script, *rest = rest
    if not (ROOT / script).is_file():
        raise ValueError(f'there is no file {script}')
    if script in NEEDS and find_spec(NEEDS[script]) is None:
        return '', rest
    if script.endswith('.py'):
        return script, rest
    return split_launch(script, rest)


def split_launch(script: str, rest: list[str]) -> tuple[str, list[str]]:
    """A call of a shell script as the Python program that it starts and the arguments of that."""
    name = Path(script).name
    if name in ('dist_train.sh', 'dist_test.sh'):
        number = 1 if name == 'dist_train.sh' else 2
        if not rest[number].isdigit() and not rest[number].isupper():
            raise ValueError(f'{rest[number]!r} is no number of processes')
        return name.removeprefix('dist_').removesuffix('.sh'), [*rest[:number], *rest[number + 1 :]]
    if name == 'slurm_train.sh':  # partition and name of the job come first
        return 'train', [rest[2], '--work-dir', *rest[3:]]
    if name == 'slurm_test.sh':
        return 'test', rest[2:]
    if name == 'quickstart.sh':
        return 'tools/quickstart.py', rest
    if name == 'run.sh':  # the options are pytest's
        return '', []
    text = (ROOT / script).read_text(encoding='utf-8')
    for option in (word for word in rest if word.startswith('--')):
        if option not in text:
            raise ValueError(f'{script} has no option {option}')
    return '', []


def check_arguments(program: str, arguments: list[str], unknown_settings: Callable[..., list[str]]) -> None:
    """Parse the arguments, and look for the configs, files and settings that they name.

    Raises:
        ValueError: If something does not exist, or the parser refuses it.
    """
    if not program:
        return check_names(arguments)
    if arguments[-2:] == ['--cfg-options', '...']:
        arguments = arguments[:-2]
    message = io.StringIO()
    parse = {'train': train.parse_args, 'test': testing.parse_args}.get(program) or parser_of(program).parse_args
    try:
        with contextlib.redirect_stderr(message):
            args = parse(arguments)
    except SystemExit:
        raise ValueError(message.getvalue().strip().splitlines()[-1]) from None
    check_names(arguments)
    options, config = getattr(args, 'cfg_options', None), getattr(args, 'config', None) or getattr(args, 'target', None)
    if isinstance(options, dict) and isinstance(config, str) and not is_placeholder(config):
        unknown = unknown_settings(read(config), options, READ)
        if unknown:
            raise ValueError(f'{config} has no {", ".join(unknown)}')
    return None


@cache
def read(config: str) -> dict:
    return load_config(config)


def is_placeholder(word: str) -> bool:
    """Whether a word stands for something of the reader's: capitals, a part that is left out, a file to be written."""
    return bool(re.match(r'[A-Z][A-Z_]*\b', word)) or '...' in word or word.startswith(('my_', 'work_dirs/'))


def check_names(words: list[str]) -> None:
    """Raise a ValueError if a word looks like a file of the repository, a config or weights, and there is none."""
    for word in words:
        name = word.partition('=')[0] if word.endswith('.pth') else word
        if is_placeholder(word) or (word.startswith('-') or '=' in name):
            continue
        if word.startswith(FOLDERS):
            if not (ROOT / word).exists():
                raise ValueError(f'there is no file {word}')
        elif '::' in name or re.search(r'itpn-|itpn_', name):
            with contextlib.suppress(ValueError):
                find_weights(name)
                continue
            try:
                resolve_config(name)
            except (FileNotFoundError, ValueError) as error:
                raise ValueError(str(error)) from None


def scripts_of(text: str) -> Iterator[str]:
    """The assignments and commands of each block of a page, as lines of bash."""
    found = [(match.start(), match[2]) for match in BLOCK.finditer(text) if match[1] in ('', 'bash')]
    outside = BLOCK.sub(lambda match: ' ' * (len(match[0]) - 1) + '\n', text)
    found += [(match.start(), re.sub(r'(?m)^    ', '', match[0])) for match in INDENTED.finditer(outside)]
    for _, block in sorted(found):
        joined = re.sub(r'\\\n\s*', ' ', block)
        lines = [(match.start(), match[0]) for match in ASSIGNMENT.finditer(joined)]
        position = 0
        for line in joined.splitlines():
            if COMMAND.match(line):
                lines.append((position, line))
            position += len(line) + 1
        yield '\n'.join(line for _, line in sorted(lines))


@pytest.fixture(scope='module', autouse=True)
def hosts() -> None:
    register_host_configs()


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_commands_of_blocks(
    page: Path,
    at_root: None,
    shell_calls: Callable[[str], list[list[str]]],
    unknown_settings: Callable[..., list[str]],
) -> None:
    faults = []
    for words in shell_calls('\n'.join(scripts_of(page.read_text(encoding='utf-8')))):
        try:
            check_arguments(*split_call(words), unknown_settings)
        except ValueError as error:
            faults.append(f'{shlex.join(words)}: {error}')
    assert not faults, '\n'.join(faults)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_commands_in_the_text(page: Path, at_root: None) -> None:
    """They may be cut short, so that only what is there is looked up: the command or file, and its options."""
    text = BLOCK.sub('', page.read_text(encoding='utf-8'))
    faults = []
    for command in INLINE.findall(text):
        words = ' '.join(command.split()).split(' ')
        with contextlib.suppress(ValueError):  # a quote that is not closed
            words = shlex.split(' '.join(words))
        try:
            program, arguments = split_call(words)
            check_names([word for word in arguments if not re.search(r'[{}$*]', word)])
            options = [word.partition('=')[0] for word in arguments if re.fullmatch(r'--[a-z][\w-]*(=.*)?', word)]
            known = options_of(parser_of(program)) if program and options else set()
            if program and not set(options) <= known:
                raise ValueError(f'{program} has no option {", ".join(sorted(set(options) - known))}')
        except (ValueError, IndexError) as error:
            faults.append(f'{" ".join(words)}: {error}')
    assert not faults, '\n'.join(faults)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its sub-commands."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options |= set().union(*map(options_of, action.choices.values()))
    return options


def test_most_commands_are_found(shell_calls: Callable[[str], list[list[str]]]) -> None:
    """A change of the pages' form must not hide their commands."""
    scripts = {name_of(page): '\n'.join(scripts_of(page.read_text(encoding='utf-8'))) for page in PAGES}
    number = {name: len(shell_calls(script)) for name, script in scripts.items()}
    assert number['docs/recipes.md'] > 30
    assert number['README.md'] > 12
    assert number['docs/own_data.md'] >= 7
    assert sum(number.values()) > 100


@pytest.mark.parametrize(
    ('command', 'fault'),
    [
        ('mmitpn trian CONFIG', 'no command'),
        ('mmitpn train CONFIG --pretraind FILE', 'unrecognized arguments: --pretraind'),
        ('mmitpn train dino-4scale_fast-itpn-b_8xb2-13e_coco', 'no config file'),
        ('mmitpn train dino-4scale_fast-itpn-b_8xb2-12e_coco --cfg-options model.num_querys=1', 'model.num_querys'),
        ('mmitpn train CONFIG --pretrained fast-itpn-bb', 'no config file'),
        ('mmitpn data check CONFIG --imges DIR', 'unrecognized arguments: --imges'),
        ('python tools/tarin.py CONFIG', 'no file tools/tarin.py'),
        ('python tools/analysis/benchmark.py --prat backbone', 'unrecognized arguments: --prat'),
        ('bash tools/dist_train.sh CONFIG --amp', 'no number of processes'),
        ('bash tools/dist_train.sh configs/dino/none.py 8', 'no file configs/dino/none.py'),
        ('bash tools/install.sh --complied', 'no option --complied'),
    ],
)
def test_a_wrong_command_is_found(
    command: str, fault: str, at_root: None, unknown_settings: Callable[..., list[str]]
) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        check_arguments(*split_call(shlex.split(command)), unknown_settings)


# --- what runs anywhere in seconds is run ----------------------------------------------------------------------------
# The beginning of a command -> a file that it writes, or words that it prints.
RUN = {
    'mmitpn weights list': 'fast-itpn-b',
    'mmitpn data shapes --out data/shapes && mmitpn test': 'bbox_mAP',
    'mmitpn predict demo --model nano-shapes': 'predictions/shapes_1.jpg',
    'python -m mmitpn.ops status': 'mmcv',
}
# The beginning of a command -> why it is not run.
MINUTES, DATA, FILES = 'takes minutes or hours', 'needs COCO, ADE20K or ImageNet', 'needs released weights'
NOT_RUN = {
    'bash tools/install.sh': 'makes environments: tests/test_installation.py',
    'bash tools/quickstart.sh': MINUTES,
    'python tools/quickstart.py --seed 0 --cfg-options': MINUTES,
    'bash tests/run.sh': 'is what runs this',
    'python tools/train.py configs/quickstart/mask-dino_fast-itpn-nano_photos': DATA,
    'python -m pytest': 'is a part of what runs this',
    'bash tools/dist_train.sh': DATA,
    'mmitpn weights get': FILES,
    'mmitpn train dino-4scale': DATA,
    'mmitpn train upernet': DATA,
    'mmitpn test dino-4scale': DATA,
    'mmitpn test upernet': DATA,
    'mmitpn data check dino-4scale': DATA,
    'python tools/data/check_semantic.py upernet': DATA,
    'PYTHONPATH=. mmitpn train my_config.py': f'{FILES}; tests/test_recipes.py runs it without',
    'mmitpn benchmark': f'{MINUTES}; tests/benchmark runs it in small',
    'mmitpn export nano-shapes': 'takes a minute: tests/apis/test_export.py',
    'mmitpn predict photos --model': 'needs an exported file: tests/apis/test_export.py',
    'mmitpn export upernet': f'{MINUTES}; tests/deploy runs it in small',
    'python -m mmitpn.ops install': 'changes the environment: tests/ops',
    'python -m mmitpn.ops uninstall': 'changes the environment: tests/ops',
    'python demo/app.py': 'does not end: tests/demo',
    'python demo/serve.py': 'does not end: tests/demo',
    'python tools/analysis/': f'{MINUTES}; tests/tools and tests/benchmark run them in small',
    'python projects/memory_plan/plan.py': MINUTES,
    'python projects/operators/compare.py': 'needs a compiled mmcv',
    'python projects/pretraining_study/': MINUTES,
    'python projects/swap_survey/': MINUTES,
    'python projects/token_reduction_study/': MINUTES,
    'PYTHONPATH=projects/token_reduction_study python tools/train.py': MINUTES,
}
OWN = re.compile(r'(?<![\w=])[A-Z][A-Z_]{2,}\b(?!=)|\.\.\.')  # a word that stands for something of the reader's


def commands() -> Iterator[str]:
    """Commands of all pages as they stand there, without comments, each once."""
    found = set()
    for page in PAGES:
        for line in '\n'.join(scripts_of(page.read_text(encoding='utf-8'))).splitlines():
            command = ' '.join(re.sub(r'\s+#.*', '', line).split())
            if COMMAND.match(line) and not OWN.search(command) and command not in found:
                found.add(command)
                yield command


def known(command: str) -> str | None:
    """The entry of the tables above that a command begins with; the longest counts."""
    entries = [one for one in (*RUN, *NOT_RUN) if command.startswith(one)]
    return max(entries, key=len, default=None)


def test_every_command_is_run_or_has_a_reason() -> None:
    found = list(commands())
    assert len(found) > 60
    assert [command for command in found if known(command) is None] == []
    assert {*RUN, *NOT_RUN} - {known(command) for command in found} == set()


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's configs, scripts and images."""
    folder = tmp_path_factory.mktemp('docs')
    for name in ('configs', 'tools', 'demo', 'projects'):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow
def test_commands_run(folder: Path) -> None:
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'COLUMNS': '160'}
    started = [command for command in commands() if known(command) in RUN]
    for command in sorted(started, key=lambda command: list(RUN).index(known(command))):
        expected = RUN[known(command)]
        line = re.sub(r'(?<!\S)mmitpn(?= )', 'python -m mmitpn', command)
        line = re.sub(r'(?<!\S)python(?= )', shlex.quote(sys.executable), line)
        done = subprocess.run(
            line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, f'{command}\n{output[-3000:]}'
        assert expected in output or (folder / expected).is_file(), f'{command}\n{output[-3000:]}'
