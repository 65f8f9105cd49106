"""How the operators get into an installed mmcv, in folders of packages made for the test."""

import argparse
import errno
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import mmitpn
from mmitpn.engine.cli import run_command
from mmitpn.ops import install as module

ROOT = Path(__file__).parents[2]
TOOL = ('-m', 'mmitpn.ops')


def _python(*arguments, path, mmitpn=True):
    """Run Python with packages from ``path`` first, from a folder without any."""
    paths = [str(path), *([str(ROOT)] if mmitpn else [])]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(paths), 'PYTHONDONTWRITEBYTECODE': '1'}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=path
    )


@pytest.fixture
def mmcv(tmp_path):
    """A package that looks its operators up as mmcv does, and must not be imported to be found."""
    folder = tmp_path / 'mmcv'
    folder.mkdir()
    (folder / '__init__.py').write_text(
        "import os\nif os.environ.get('NO_MMCV'): raise SystemExit('mmcv was imported')\n"
    )
    (folder / 'ops.py').write_text(
        'import importlib\n'
        "ext = importlib.import_module('mmcv._ext')\n"
        "assert hasattr(ext, 'nms') and hasattr(ext, 'knn_forward')\n"
    )
    return folder


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command line on the packages of ``tmp_path``, in this process."""

    def call(command):
        for name in [name for name in sys.modules if name.partition('.')[0] == 'mmcv']:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(str(tmp_path))
        status = module.main([command])
        out, err = capsys.readouterr()
        lines = (out + err).splitlines()
        assert len(lines) == 1  # one sentence
        assert bool(err) == (status == 2 and command != 'status')
        return status, lines[0]

    return call


def test_install_hands_the_operators_over_and_uninstall_takes_them_away(mmcv, monkeypatch):
    monkeypatch.setenv('NO_MMCV', '1')
    before = _python(*TOOL, 'status', path=mmcv.parent)
    assert before.returncode == 2
    assert before.stdout.startswith(f'none: the mmcv in {mmcv} has no operators; run "')
    assert before.stdout.rstrip().endswith('-m mmitpn.ops install"')
    done = _python(*TOOL, 'install', path=mmcv.parent)
    assert (done.returncode, done.stderr) == (0, '')
    assert str(mmcv / '_ext.py') in done.stdout
    assert _python(*TOOL, 'status', path=mmcv.parent).stdout.startswith('ours: ')
    monkeypatch.delenv('NO_MMCV')
    used = _python(
        '-c',
        'import torch, mmcv.ops as ops\n'
        'boxes = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]])\n'
        'print(ops.ext.nms(boxes, torch.tensor([.9, .8, .7]), iou_threshold=.5, offset=0).tolist())',
        path=mmcv.parent,
    )
    assert used.stdout.strip() == '[0, 2]', used.stderr
    removed = _python(*TOOL, 'uninstall', path=mmcv.parent)
    assert (removed.returncode, removed.stdout.strip()) == (0, f'removed {mmcv / "_ext.py"}')
    assert sorted(path.name for path in mmcv.iterdir()) == ['__init__.py', 'ops.py']


def test_without_mmitpn_the_file_says_what_is_missing(mmcv):
    (mmcv / '_ext.py').write_text(module.SOURCE)
    code = 'try: import mmcv.ops\nexcept ImportError as e: print(type(e).__name__, e)'
    run = _python('-S', '-c', code, path=mmcv.parent, mmitpn=False)  # -S: without site-packages
    assert run.stdout.startswith('ImportError mmcv has no compiled operators'), run.stderr
    assert str(mmcv / '_ext.py') in run.stdout
    assert 'no module mmitpn; run "python -m pip install ."' in run.stdout
    assert module.COMPILED in run.stdout


def test_another_missing_module_is_reported_as_it_is(mmcv):
    (mmcv / '_ext.py').write_text(module.SOURCE)
    (mmcv.parent / 'mmitpn' / 'ops').mkdir(parents=True)
    (mmcv.parent / 'mmitpn' / 'ops' / 'extension.py').write_text('import no_such_library\n')
    run = _python('-c', 'import mmcv.ops', path=mmcv.parent, mmitpn=False)
    assert run.stderr.rstrip().endswith("ModuleNotFoundError: No module named 'no_such_library'")


def test_install_twice_and_after_an_update(mmcv, run):
    assert run('install')[0] == 0
    assert 'already' in run('install')[1]
    (mmcv / '_ext.py').write_text(module.MARKER + ' by an older release\n')
    assert run('install') == (0, f'mmcv now uses the PyTorch operators of mmitpn ({mmcv / "_ext.py"})')
    assert (mmcv / '_ext.py').read_text() == module.SOURCE
    assert not list(mmcv.glob('_ext.?*[!p][!y]'))


@pytest.mark.parametrize('suffix', [EXTENSION_SUFFIXES[0], '.cpython-39-x86_64-linux-gnu.so', '.cp39-win_amd64.pyd'])
def test_a_compiled_extension_that_does_not_load(mmcv, run, suffix, monkeypatch):
    monkeypatch.setattr(module, '_load_error', '{} has an undefined symbol'.format)
    compiled = mmcv / f'_ext{suffix}'
    compiled.write_bytes(b'built for another torch')
    (status, found), (code, refused) = run('status'), run('install')
    assert (status, code) == (2, 2)
    assert found.startswith(f'broken: the compiled operators {compiled} do not load')
    assert f'({compiled} has an undefined symbol)' in found
    assert module.COMPILED in found
    assert refused == f'error: {found.removeprefix("broken: ")}'
    assert compiled.read_bytes() == b'built for another torch'
    assert not (mmcv / '_ext.py').exists()


def test_a_compiled_extension_is_loaded_to_see_whether_it_can_be(tmp_path):
    compiled = tmp_path / f'_ext{EXTENSION_SUFFIXES[0]}'
    compiled.write_bytes(b'built for another torch')
    assert re.fullmatch(r'ImportError: .*_ext\..*', module._load_error(compiled))


def test_a_compiled_extension_that_loads_stays(mmcv, run, monkeypatch):
    monkeypatch.setattr(module, '_load_error', {}.get)
    compiled = mmcv / f'_ext{EXTENSION_SUFFIXES[0]}'
    compiled.write_bytes(b'')
    assert run('status') == (0, f'compiled: mmcv uses its compiled operators ({compiled})')
    code, refused = run('install')
    assert code == 2
    assert 'compiled operators, which stay in use' in refused
    assert not (mmcv / '_ext.py').exists()


def test_a_file_of_somebody_else_stays(mmcv, run):
    (mmcv / '_ext.py').write_text('nms = None\n')
    assert run('status')[1].startswith('foreign: ')
    code, refused = run('install')
    assert code == 2
    assert f'rm -r {mmcv / "_ext.py"} && ' in refused
    assert run('uninstall')[1].startswith('nothing to remove')
    assert (mmcv / '_ext.py').read_text() == 'nms = None\n'


def test_mmcv_is_missing(monkeypatch, run):
    monkeypatch.setattr(module, 'find_spec', {}.get)
    assert run('status') == (2, 'missing: mmcv is not installed; run "bash tools/install.sh" in a checkout of mmitpn')
    assert run('install') == (2, 'error: mmcv is not installed; run "bash tools/install.sh" in a checkout of mmitpn')
    assert run('uninstall')[0] == 0


def test_what_an_uninstalled_mmcv_left_is_removed(mmcv, run):
    (mmcv / '_ext.py').write_text(module.SOURCE)
    for name in ('__init__.py', 'ops.py'):
        (mmcv / name).unlink()
    if importlib.util.find_spec('mmcv') is None:  # else Python finds the installed one
        assert run('status')[0] == 2
        assert run('uninstall') == (0, f'removed {mmcv / "_ext.py"}')
        assert not mmcv.exists()
    else:
        done = _python('-S', *TOOL, 'uninstall', path=mmcv.parent)  # without site-packages
        assert (done.returncode, done.stdout.strip()) == (0, f'removed {mmcv / "_ext.py"}'), done.stderr
        assert not mmcv.exists()


@pytest.mark.parametrize('error', [errno.EACCES, errno.EROFS])
def test_read_only_packages(mmcv, run, monkeypatch, error):
    def refuse(*args, **kwargs):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(module.tempfile, 'NamedTemporaryFile', refuse)
        code, message = run('install')
    assert code == 2
    assert message.startswith(f'error: cannot write to {mmcv} ({os.strerror(error)}); run "sudo ')
    assert 'mmitpn.ops install"' in message
    assert run('install')[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Path, 'unlink', refuse)
        code, message = run('uninstall')
    assert code == 2
    assert 'mmitpn.ops uninstall"' in message
    assert (mmcv / '_ext.py').exists()


def test_a_folder_in_the_way_is_no_traceback(mmcv, run):
    (mmcv / '_ext.py').mkdir()
    assert run('install')[0] == 2


@pytest.mark.slow
def test_mmcv_and_mmdet_run_without_a_compiled_extension(tmp_path):
    installed = importlib.util.find_spec('mmcv')
    if installed is None or importlib.util.find_spec('mmdet') is None:
        pytest.skip('needs mmcv and mmdet')
    shutil.copytree(
        Path(installed.origin).parent, tmp_path / 'mmcv', ignore=shutil.ignore_patterns('_ext*', 'csrc', '__pycache__')
    )
    assert _python(*TOOL, 'install', path=tmp_path).returncode == 0
    code = """
import torch, mmcv, mmcv.ops, mmcv._ext, mmdet.models, mmdet.apis
boxes = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]])
scores, labels = torch.tensor([.9, .8, .7]), torch.tensor([0, 1, 0])
print(mmcv._ext.__file__)
print(mmcv.ops.nms(boxes, scores, .5)[1].tolist(), mmcv.ops.soft_nms(boxes, scores)[1].tolist())
print(mmcv.ops.batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=.5))[1].tolist())
print(mmcv.ops.get_compiler_version())
"""
    run = _python('-W', 'ignore', '-c', code, path=tmp_path)
    assert run.stdout.splitlines()[-4:] == [
        str(tmp_path / 'mmcv' / '_ext.py'),
        '[0, 2] [0, 2, 1]',
        '[0, 1, 2]',
        'none: PyTorch operators of mmitpn',
    ], run.stderr


def test_an_import_that_fails_because_of_mmcv_is_explained(mmcv, run, monkeypatch, capsys):
    error = ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext')
    sentence = run('status')[1].removeprefix('none: ')
    assert module.explain_import(error) == sentence
    assert module.explain_import(ModuleNotFoundError("No module named 'x'", name='x')) is None

    def fails(*_):
        raise error

    monkeypatch.setattr(mmitpn, 'import_module', fails)
    with pytest.raises(ImportError, match=re.escape(f'mmitpn.DINO needs mmcv: {sentence}')):
        mmitpn.DINO  # noqa: B018
    assert run_command(fails, argparse.Namespace(debug=False)) == 2
    assert capsys.readouterr().err == f'error: {sentence} (--debug shows where)\n'
    run('install')  # operators are there: something else is wrong, and its own message stays
    assert module.explain_import(error) is None
    assert run_command(fails, argparse.Namespace(debug=False)) == 2
    assert "No module named 'mmcv._ext'" in capsys.readouterr().err
