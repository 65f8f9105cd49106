"""How the operators get into an installed mmcv, and the table of the names of mmcv._ext."""

import argparse
import errno
import importlib.util
import inspect
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
from mmitpn.ops import extension
from mmitpn.ops import install as module

ROOT = Path(__file__).parents[2]
TOOL = ('-m', 'mmitpn.ops')
# Operator -> names of its arguments in csrc/pytorch/pybind.cpp of mmcv 2.3.6.
ARGUMENTS = {
    'bbox_overlaps': 'bboxes1 bboxes2 ious mode aligned offset',
    'border_align_backward': 'grad_output boxes argmax_idx grad_input pool_size',
    'border_align_forward': 'input boxes output argmax_idx pool_size',
    'box_iou_rotated': 'boxes1 boxes2 ious mode_flag aligned',
    'carafe_backward': (
        'top_grad rfeatures masks rtop_grad rbottom_grad_hs rbottom_grad rmask_grad bottom_grad mask_grad '
        'kernel_size group_size scale_factor'
    ),
    'carafe_forward': 'features masks rfeatures routput rmasks output kernel_size group_size scale_factor',
    'carafe_naive_backward': 'top_grad features masks bottom_grad mask_grad kernel_size group_size scale_factor',
    'carafe_naive_forward': 'features masks output kernel_size group_size scale_factor',
    'deform_conv_backward_input': (
        'input offset gradOutput gradInput gradOffset weight columns kW kH dW dH padW padH dilationW dilationH '
        'group deformable_group im2col_step'
    ),
    'deform_conv_backward_parameters': (
        'input offset gradOutput gradWeight columns ones kW kH dW dH padW padH dilationW dilationH group '
        'deformable_group scale im2col_step'
    ),
    'deform_conv_forward': (
        'input weight offset output columns ones kW kH dW dH padW padH dilationW dilationH group deformable_group '
        'im2col_step'
    ),
    'deform_roi_pool_backward': (
        'grad_output input rois offset grad_input grad_offset pooled_height pooled_width spatial_scale '
        'sampling_ratio gamma'
    ),
    'deform_roi_pool_forward': (
        'input rois offset output pooled_height pooled_width spatial_scale sampling_ratio gamma'
    ),
    'line_nms_forward': 'boxes scores thresh top_k',
    'masked_col2im_forward': 'col mask_h_idx mask_w_idx im height width channels',
    'masked_im2col_forward': 'im mask_h_idx mask_w_idx col kernel_h kernel_w pad_h pad_w',
    'modulated_deform_conv_backward': (
        'input weight bias ones offset mask columns grad_input grad_weight grad_bias grad_offset grad_mask '
        'grad_output kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w group deformable_group '
        'with_bias'
    ),
    'modulated_deform_conv_forward': (
        'input weight bias ones offset mask output columns kernel_h kernel_w stride_h stride_w pad_h pad_w '
        'dilation_h dilation_w group deformable_group with_bias'
    ),
    'ms_deform_attn_backward': (
        'value value_spatial_shapes value_level_start_index sampling_locations attention_weights grad_output '
        'grad_value grad_sampling_loc grad_attn_weight im2col_step'
    ),
    'ms_deform_attn_forward': (
        'value value_spatial_shapes value_level_start_index sampling_locations attention_weights im2col_step'
    ),
    'nms': 'boxes scores iou_threshold offset',
    'nms_match': 'dets iou_threshold',
    'nms_rotated': 'dets scores order dets_sorted labels iou_threshold multi_label',
    'prroi_pool_backward': 'grad_output rois grad_input pooled_height pooled_width spatial_scale',
    'prroi_pool_coor_backward': 'output grad_output input rois grad_rois pooled_height pooled_width spatial_scale',
    'prroi_pool_forward': 'input rois output pooled_height pooled_width spatial_scale',
    'psamask_backward': (
        'grad_output grad_input psa_type num_ h_feature w_feature h_mask w_mask half_h_mask half_w_mask'
    ),
    'psamask_forward': 'input output psa_type num_ h_feature w_feature h_mask w_mask half_h_mask half_w_mask',
    'roi_align_backward': (
        'grad_output rois argmax_y argmax_x grad_input aligned_height aligned_width spatial_scale sampling_ratio '
        'pool_mode aligned'
    ),
    'roi_align_forward': (
        'input rois output argmax_y argmax_x aligned_height aligned_width spatial_scale sampling_ratio pool_mode '
        'aligned'
    ),
    'roi_align_rotated_backward': (
        'rois grad_input grad_output pooled_height pooled_width spatial_scale sampling_ratio aligned clockwise'
    ),
    'roi_align_rotated_forward': (
        'input rois output pooled_height pooled_width spatial_scale sampling_ratio aligned clockwise'
    ),
    'roi_pool_backward': 'grad_output rois argmax grad_input pooled_height pooled_width spatial_scale',
    'roi_pool_forward': 'input rois output argmax pooled_height pooled_width spatial_scale',
    'sigmoid_focal_loss_backward': 'input target weight grad_input gamma alpha',
    'sigmoid_focal_loss_forward': 'input target weight output gamma alpha',
    'softmax_focal_loss_backward': 'input target weight buff grad_input gamma alpha',
    'softmax_focal_loss_forward': 'input target weight output gamma alpha',
    'softnms': 'boxes scores dets iou_threshold sigma min_score method offset',
    'sync_bn_backward_data': 'grad_output weight grad_weight grad_bias norm std grad_input',
    'sync_bn_backward_param': 'grad_output norm grad_weight grad_bias',
    'sync_bn_forward_mean': 'input mean',
    'sync_bn_forward_output': (
        'input mean var weight bias running_mean running_var norm std output eps momentum group_size'
    ),
    'sync_bn_forward_var': 'input mean var',
}
# pybind.cpp has the first three names in another order than the function takes them; mmcv passes them by position.
ARGUMENTS['roi_align_rotated_backward'] = ARGUMENTS['roi_align_rotated_backward'].replace(
    'rois grad_input grad_output', 'grad_output rois grad_input'
)


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


def test_all_names_of_the_extension():
    assert len(extension.__all__) == len(set(extension.__all__)) == 113
    assert all(callable(getattr(extension, name)) for name in extension.__all__)
    assert {name for names in extension.OPERATORS.values() for name in names} == set(ARGUMENTS)


@pytest.mark.parametrize(('module', 'name'), [(m, n) for m, names in extension.OPERATORS.items() for n in names])
def test_operators_take_the_arguments_of_the_compiled_ones(module, name):
    module = pytest.importorskip(f'mmitpn.ops.{module}')
    parameters = inspect.signature(getattr(module, name)).parameters
    assert ' '.join(parameters) == ARGUMENTS[name]


def test_an_operator_that_only_a_compiled_mmcv_has():
    with pytest.raises(NotImplementedError, match=r'operator upfirdn2d.*tools/install\.sh --compiled.*onedl-mmcv==2'):
        extension.upfirdn2d('anything', up=2)
    assert extension.upfirdn2d.__name__ == 'upfirdn2d'


def test_mmengine_reports_that_nothing_is_compiled():
    assert extension.get_compiler_version() == extension.get_compiling_cuda_version()
    assert extension.get_compiler_version() == 'none: PyTorch operators of mmitpn'


def test_importing_the_names_imports_neither_a_framework_nor_an_operator():
    code = (
        'import sys, mmitpn.ops.extension; '
        'print(sorted({"torch", "torchvision", "numpy", "mmcv", "mmengine", "mmitpn.ops.nms"} & set(sys.modules)))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]'


def test_operators_import_no_framework():
    code = (
        'import sys, importlib, mmitpn.ops.extension as e\n'
        'for module in ("boxes", "focal_loss", "nms", "rotated"): importlib.import_module(f"mmitpn.ops.{module}")\n'
        'print(sorted(name for name in sys.modules if name.partition(".")[0] in ("mmcv", "mmengine", "torchvision")))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]'
