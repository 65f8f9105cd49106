from __future__ import annotations

import builtins
import re
import sys

import pytest

from mmitpn import doctor
from mmitpn.doctor import cuda, environment, found, mend


@pytest.fixture
def versions(monkeypatch):
    """Lets a test say which distributions are installed."""

    def set_versions(**others: str | None) -> None:
        real = found.installed
        replaced = {name.replace('_', '-'): value for name, value in others.items()}
        monkeypatch.setattr(environment, 'installed', lambda name: replaced[name] if name in replaced else real(name))

    return set_versions


def test_this_environment_is_well(capsys):
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    assert 'everything that mmitpn needs works' in printed
    for row in ('stack +(onedl|openmmlab) ', r'mmcv\.ops ', 'GPU .*torch is built'):
        assert re.search(f'^{row}', printed, re.MULTILINE)


def test_both_stacks_at_once_are_named(versions):
    versions(mmcv='2.1.0', onedl_mmcv='2.3.6', mmcv_lite=None)
    result = doctor.Diagnosis()
    environment.check_stack(result)
    (problem,) = [one for one in result.problems if 'onedl-mmcv and mmcv are both installed' in one.says]
    assert problem.mend.startswith(f'{sys.executable} -m pip uninstall -y onedl-mmcv mmcv && ')


def test_two_builds_of_opencv_are_named(versions):
    versions(opencv_python='4.12.0', opencv_python_headless='4.12.0', opencv_contrib_python=None)
    result = doctor.Diagnosis()
    environment.check_libraries(result)
    (problem,) = [one for one in result.problems if 'opencv-python and opencv-python-headless' in one.says]
    assert problem.mend.startswith(f'{sys.executable} -m pip uninstall -y opencv-python && ')
    assert 'install --force-reinstall --no-deps opencv-python-headless==' in problem.mend


def test_a_mixed_stack_gets_a_new_environment(versions):
    nothing = {name.replace('-', '_'): None for names in environment.HOSTS.values() for name in names}
    versions(**{**nothing, 'onedl_mmcv': '2.3.6', 'onedl_mmengine': '0.10.12', 'mmdet': '3.3.0'})
    assert environment.find_stack() == 'onedl'
    result = doctor.Diagnosis(stack='onedl')
    environment.check_stack(result)
    assert 'mixed from both stacks' in result.problems[0].says
    assert '-new bash ' in result.problems[0].mend or '.venv bash ' in result.problems[0].mend


@pytest.mark.parametrize(
    ('installed', 'says', 'command'),
    [
        ({'mmcv': '2.2.0', 'mmdet': '3.3.0'}, 'below 2.2.0', '--stack openmmlab'),
        ({'mmcv': None, 'mmcv_lite': '2.2.0', 'mmdet': '3.3.0'}, 'below 2.2.0', '--stack openmmlab'),
        ({'numpy': '2.2.6', 'mmengine': '0.10.7'}, 'numpy below 2', 'pip install --no-deps numpy==1.26.4'),
        ({'numpy': '1.26.4', 'onedl_mmsegmentation': '1.4.2'}, 'needs numpy 2', 'pip install --no-deps numpy==2.2.6'),
    ],
)
def test_combinations_that_do_not_work(versions, monkeypatch, installed, says, command):
    monkeypatch.setattr(mend.sys, 'prefix', '/envs/a-openmmlab')
    versions(**installed)
    result = doctor.Diagnosis()
    environment.check_known_combinations(result)
    assert any(says in problem.says and command in problem.mend for problem in result.problems)


@pytest.mark.parametrize(('stack', 'newest'), [('onedl', '3.13'), ('openmmlab', '3.12')])
def test_a_python_outside_the_range(monkeypatch, stack, newest):
    result = doctor.Diagnosis(stack=stack)
    major, minor = map(int, newest.split('.'))
    monkeypatch.setattr(environment.sys, 'version_info', (major, minor, 9))
    environment.check_python(result)
    assert not result.problems
    monkeypatch.setattr(environment.sys, 'version_info', (major, minor + 1, 0))
    environment.check_python(result)
    assert f'3.10 to {newest}' in result.problems[0].says
    assert result.problems[0].mend.startswith('PYTHON=python3.11 MMITPN_VENV=')


def test_any_error_of_an_import_is_one_line(monkeypatch):
    def broken(name: str, *_: str) -> None:
        raise builtins.RuntimeError('first line\nsecond line')

    monkeypatch.setattr(found.importlib, 'import_module', broken)
    assert found.one_line(found.try_import('anything')) == 'RuntimeError: first line second line'


@pytest.mark.parametrize(
    ('module', 'error', 'command'),
    [
        (
            'mmdet',
            ModuleNotFoundError("No module named 'mmdet'", name='mmdet'),
            'install --no-deps onedl-mmdetection==',
        ),
        ('mmdet', ModuleNotFoundError('', name='mmengine'), 'install --no-deps onedl-mmengine=='),
        ('mmdet', ModuleNotFoundError('', name='mmcv._ext'), '-m mmitpn.ops install'),
        ('mmseg', AssertionError('MMCV==2.2.0 is used but incompatible'), 'install.sh --stack onedl --repair'),
        ('mmdet', ModuleNotFoundError('', name='pycocotools'), 'install.sh --stack onedl --repair'),
        ('mmcv', ImportError('libcudart.so.11.0: cannot open'), '-m mmitpn.ops install'),
        ('mmdet', ImportError('/x/mmcv/_ext.cpython-311.so: undefined symbol: _Z'), '-m mmitpn.ops install'),
        ('cv2', ImportError('numpy.core.multiarray failed to import'), 'install --force-reinstall --no-deps numpy=='),
        ('mmdet', AttributeError("module 'cv2' has no attribute 'x'"), 'install --force-reinstall --no-deps opencv-'),
        ('torch', OSError('libc10.so: invalid ELF header'), 'install --force-reinstall --no-deps torch==2.14.1'),
    ],
)
def test_what_mends_an_import(module, error, command):
    assert command in environment.mend_import(doctor.Diagnosis(stack='onedl'), module, error)


def test_a_package_without_its_files_is_broken(tmp_path, monkeypatch):
    (tmp_path / 'emptied').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert 'lost its files' in str(found.try_import('emptied'))


def test_a_problem_is_told_once():
    result = doctor.Diagnosis()
    for _ in range(2):
        result.problem('says', mend.pip('check'))
    assert len(result.problems) == 1


@pytest.mark.parametrize(
    ('driver', 'built', 'says'),
    [
        ((13, 0), '13.0', None),
        ((12, 4), '12.8', None),
        ((12, 4), None, None),
        ((12, 4), '13.0', r'supports CUDA 12\.4; update it to 580 or newer.*, or install torch==2\.10\.0.*12'),
        ((11, 4), '13.0', r'supports CUDA 11\.4; update it to 580 or newer.*: sudo '),
    ],
)
def test_a_driver_that_is_too_old(monkeypatch, driver, built, says):
    import torch

    from mmitpn.engine import environment as engine_environment

    monkeypatch.setattr(torch.version, 'cuda', built)
    monkeypatch.setattr(cuda, 'read_driver', lambda: (driver, 1))
    monkeypatch.setattr(engine_environment, 'get_device', lambda: 'cpu')
    result = doctor.Diagnosis()
    cuda.check_gpu(result)
    if says is None:
        assert cuda.unused_gpu() is None
        assert not result.problems
        return
    (problem,) = result.problems
    assert re.search(says, f'{problem.says}: {problem.mend}')
    assert ('sudo ' in problem.mend) == (driver[0] < 12)
    with pytest.warns(UserWarning, match=f'the GPU is not used, since torch .*{says}'):
        engine_environment.setup_environment()
