"""``mmitpn COMMAND``: which commands there are, what an unknown one says, and that starting is light."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from mmitpn.__main__ import COMMANDS, main


@pytest.mark.parametrize('command', COMMANDS)
def test_each_command_has_its_module(command):
    assert find_spec(COMMANDS[command][0]) is not None


@pytest.mark.parametrize('arguments', [[], ['--help'], ['help']])
def test_the_help_names_every_command(arguments, capsys):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith('  ')] == list(COMMANDS)


@pytest.mark.parametrize(
    ('name', 'advice'), [('predcit', "did you mean 'predict'"), ('xyz', 'allowed: predict, train')]
)
def test_an_unknown_command(name, advice, capsys):
    assert main([name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: mmitpn has no command {name!r}')
    assert advice in line


def test_version_and_help_import_no_torch():
    code = (
        "import sys; from mmitpn.__main__ import main; main(['--version']); main([]);"
        " sys.exit(bool({'torch', 'mmengine'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, '-c', code], check=False, capture_output=True).returncode == 0


def test_python_m_mmitpn_runs_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/mmitpn', 'train', '--help'])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith('usage: mmitpn train [-h]')
