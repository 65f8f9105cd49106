"""What the doctor reports about an installation and about the data of a config."""

from __future__ import annotations

import builtins
import re
import sys

import pytest

from mmitpn import doctor, installation
from mmitpn.datasets import generate_shapes
from mmitpn.doctor import Diagnosis, main
from mmitpn.installation import ROOT

CONFIG = str(ROOT / 'configs/quickstart/dino_fast-itpn-nano_shapes.py')


@pytest.fixture
def versions(monkeypatch):
    """Lets a test say which distributions are installed."""

    def set_versions(**others: str | None) -> None:
        real = installation.installed
        replaced = {name.replace('_', '-'): value for name, value in others.items()}
        for module in (doctor, installation):
            monkeypatch.setattr(module, 'installed', lambda name: replaced[name] if name in replaced else real(name))

    return set_versions


def test_this_environment_is_well(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert 'everything that mmitpn needs works' in printed
    for row in ('stack +(onedl|openmmlab) ', r'mmcv\.ops ', 'GPU .*torch is built'):
        assert re.search(f'^{row}', printed, re.MULTILINE)


def test_both_stacks_at_once_are_named(versions):
    versions(mmcv='2.1.0', onedl_mmcv='2.3.6', mmcv_lite=None)
    result = Diagnosis()
    doctor.check_stack(result)
    (problem,) = [one for one in result.problems if 'onedl-mmcv and mmcv are both installed' in one.message]
    assert problem.fix.startswith(f'{sys.executable} -m pip uninstall -y onedl-mmcv mmcv && ')


def test_two_builds_of_opencv_are_named(versions):
    versions(opencv_python='4.12.0', opencv_python_headless='4.12.0', opencv_contrib_python=None)
    result = Diagnosis()
    doctor.check_libraries(result)
    (problem,) = [one for one in result.problems if 'opencv-python and opencv-python-headless' in one.message]
    assert problem.fix.startswith(f'{sys.executable} -m pip uninstall -y opencv-python && ')
    assert 'install --force-reinstall --no-deps opencv-python-headless==' in problem.fix


def test_a_mixed_stack_gets_a_new_environment(versions):
    nothing = {name.replace('-', '_'): None for names in installation.HOSTS.values() for name in names}
    versions(**{**nothing, 'onedl_mmcv': '2.3.6', 'onedl_mmengine': '0.10.12', 'mmdet': '3.3.0'})
    assert installation.find_stack() == 'onedl'
    result = Diagnosis(stack='onedl')
    doctor.check_stack(result)
    assert 'mixed from both stacks' in result.problems[0].message
    assert '-new bash ' in result.problems[0].fix or '.venv bash ' in result.problems[0].fix


@pytest.mark.parametrize(
    ('installed', 'message', 'command'),
    [
        ({'mmcv': '2.2.0', 'mmdet': '3.3.0'}, 'below 2.2.0', '--stack openmmlab'),
        ({'mmcv': None, 'mmcv_lite': '2.2.0', 'mmdet': '3.3.0'}, 'below 2.2.0', '--stack openmmlab'),
        ({'numpy': '2.2.6', 'mmengine': '0.10.7'}, 'numpy below 2', 'pip install --no-deps numpy==1.26.4'),
        ({'numpy': '1.26.4', 'onedl_mmsegmentation': '1.4.2'}, 'needs numpy 2', 'pip install --no-deps numpy==2.2.6'),
        (
            {'transformers': '5.17.0', 'onedl_mmpretrain': '1.3.6', 'pycocotools': '2.0.11'},
            'mmpretrain 1.3.6, which mmdet imports, does not import beside transformers 5.17.0',
            "pip install 'transformers<5'",
        ),
    ],
)
def test_combinations_that_do_not_work(versions, monkeypatch, installed, message, command):
    monkeypatch.setattr(installation.sys, 'prefix', '/envs/a-openmmlab')
    versions(**installed)
    result = Diagnosis()
    doctor.check_known_combinations(result)
    assert any(message in problem.message and command in problem.fix for problem in result.problems)


@pytest.mark.parametrize(('stack', 'newest'), [('onedl', '3.13'), ('openmmlab', '3.12')])
def test_a_python_outside_the_range(monkeypatch, stack, newest):
    result = Diagnosis(stack=stack)
    major, minor = map(int, newest.split('.'))
    monkeypatch.setattr(doctor.sys, 'version_info', (major, minor, 9))
    doctor.check_python(result)
    assert not result.problems
    monkeypatch.setattr(doctor.sys, 'version_info', (major, minor + 1, 0))
    doctor.check_python(result)
    assert f'3.10 to {newest}' in result.problems[0].message
    assert result.problems[0].fix.startswith('PYTHON=python3.11 MMITPN_VENV=')


def test_any_error_of_an_import_is_one_line(monkeypatch):
    def broken(name: str, *_: str) -> None:
        raise builtins.RuntimeError('first line\nsecond line')

    monkeypatch.setattr(installation.importlib, 'import_module', broken)
    assert installation.one_line(installation.try_import('anything')) == 'RuntimeError: first line second line'


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
def test_what_fixes_an_import(module, error, command):
    assert command in installation.fix_import('onedl', module, error)


def test_a_package_without_its_files_is_broken(tmp_path, monkeypatch):
    (tmp_path / 'emptied').mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert 'lost its files' in str(installation.try_import('emptied'))


def test_a_problem_is_reported_once():
    result = Diagnosis()
    for _ in range(2):
        result.problem('message', installation.pip('check'))
    assert len(result.problems) == 1


@pytest.mark.parametrize(
    ('driver', 'built', 'message'),
    [
        ((13, 0), '13.0', None),
        ((12, 4), '12.8', None),
        ((12, 4), None, None),
        ((12, 4), '13.0', r'supports CUDA 12\.4; update it to 580 or newer.*, or install torch==2\.10\.0.*12'),
        ((11, 4), '13.0', r'supports CUDA 11\.4; update it to 580 or newer.*: sudo '),
    ],
)
def test_a_driver_that_is_too_old(monkeypatch, driver, built, message):
    import torch

    from mmitpn.engine import runtime

    monkeypatch.setattr(torch.version, 'cuda', built)
    monkeypatch.setattr(installation, 'read_driver', lambda: (driver, 1))
    monkeypatch.setattr(runtime, 'get_device', lambda: 'cpu')
    result = Diagnosis()
    doctor.check_gpu(result)
    if message is None:
        assert installation.explain_unused_gpu() is None
        assert not result.problems
        return
    (problem,) = result.problems
    assert re.search(message, f'{problem.message}: {problem.fix}')
    assert ('sudo ' in problem.fix) == (driver[0] < 12)
    with pytest.warns(UserWarning, match=f'the GPU is not used, since torch .*{message}'):
        runtime.setup_environment()


# --- the data of a config ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def without_checks(monkeypatch):
    """The installation is not checked."""
    monkeypatch.setattr(doctor, 'CHECKS', (lambda found: found.row('python', '3.11'),))


def look(*options: str, config: str = CONFIG) -> Diagnosis:
    found = Diagnosis()
    doctor.check_data(found, config, options)
    return found


def test_found_with_the_number_of_images(folder):
    generate_shapes(folder / 'data/shapes', num_train=4, num_val=3)
    found = look()
    assert not found.problems
    rows = {note: (name, version) for name, version, note in found.rows}
    assert rows['data/shapes/coco/train2017'] == ('train data', 'found, 4 images')
    assert rows['data/shapes/coco/val2017'] == ('val data', 'found, 3 images')
    assert rows['data/shapes/coco/annotations/instances_val2017.json'][1].endswith(' MB')


def test_missing_generated_images(folder):
    found = look()
    assert [version for _, version, _ in found.rows] == ['missing'] * 4
    (problem,) = found.problems
    assert 'data/shapes/coco/val2017' in problem.message
    assert problem.fix.endswith('-m mmitpn data shapes --out data/shapes')


def test_missing_data_and_a_missing_part(folder):
    generate_shapes(folder / 'mine', num_train=2, num_val=2)
    mine = 'mine/coco/'
    options = (
        f'train_dataloader.dataset.data_root={mine}',
        f'val_evaluator.ann_file={mine}annotations/instances_val2017.json',
    )
    (problem,) = look(*options, 'val_dataloader.dataset.data_root=my/coco/').problems
    assert problem.fix == 'mkdir -p my && ln -s /WHERE/YOU/HAVE/IT my/coco'
    (folder / mine / 'val2017').rename(folder / 'val')
    (problem,) = look(*options, f'val_dataloader.dataset.data_root={mine}').problems
    assert problem.fix == 'mkdir -p mine/coco && ln -s /WHERE/YOU/HAVE/IT mine/coco/val2017'


def test_what_does_not_fit_in_data_to_evaluate_only(folder):
    root = generate_shapes(folder / 'data/shapes', num_train=2, num_val=2) / 'coco'
    (root / 'train2017').rename(folder / 'elsewhere')
    (problem,) = look().problems
    assert problem.message.endswith('needs data/shapes/coco/train2017 (train data): not there')
    (root / 'annotations/instances_val2017.json').write_text('{}')
    missing, wrong = look().problems
    assert missing == problem
    assert 'instances_val2017.json is not in COCO format' in wrong.message


def test_the_test_data_are_checked(folder):
    generate_shapes(folder / 'data/shapes', num_train=2, num_val=2)
    found = look('test_dataloader.dataset.data_root=other/')
    assert [row for row in found.rows if row[0] == 'test data'] == [
        ('test data', 'missing', 'other/annotations/instances_val2017.json'),
        ('test data', 'missing', 'other/val2017'),
    ]
    assert all(problem.message.endswith('(test data): not there') for problem in found.problems)


def test_what_does_not_fit(folder):
    generate_shapes(folder / 'data/shapes', num_train=2, num_val=2)
    (problem,) = look('model.bbox_head.num_classes=7').problems
    assert 'num_classes' in problem.message
    assert problem.fix.endswith(f'-m mmitpn data check {CONFIG} --cfg-options model.bbox_head.num_classes=7')


def test_the_command_ends_with_the_problems(folder, without_checks, capsys):
    assert main(['--config', CONFIG]) == 1
    assert '1 problem(s)' in capsys.readouterr().out
    generate_shapes(folder / 'data/shapes', num_train=2, num_val=2)
    assert main(['--config', CONFIG]) == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--cfg-options', 'a=1'], 'belongs to --config'),
        (['--config', CONFIG, '--cfg-options', 'a'], 'KEY=VALUE'),
        (['--confi=x', '--nothing'], 'unrecognized arguments'),
    ],
)
def test_bad_usage_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(('text', 'message'), [('a = (', 'bad.py'), ("_base_ = 'gone.py'", 'gone.py')])
def test_a_config_that_cannot_be_read(folder, without_checks, capsys, text, message):
    (folder / 'bad.py').write_text(text)
    assert main(['--config', 'bad.py']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
