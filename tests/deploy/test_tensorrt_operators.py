"""Operators of ONNX files against TensorRT's list."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip('onnx', reason='onnx is not installed: pip install onnx')
from onnx import TensorProto, helper, numpy_helper

from mmitpn.deploy.tensorrt_operators import SUPPORTED, check_tensorrt

ROOT = Path(__file__).parents[2]


def write(
    path: Path,
    *nodes: Any,
    opset: int = 18,
    types: dict[str, int] | None = None,
    shape: tuple[int, ...] = (1, 3, 8, 8),
    constants: dict[str, np.ndarray] | None = None,
    **model: Any,
) -> Path:
    """An ONNX file of some nodes. Values that no node computes are inputs, float unless ``types`` says otherwise."""
    constants = constants or {}
    computed = {name for node in nodes for name in node.output}
    names = dict.fromkeys(name for node in nodes for name in node.input if name and name not in {*computed, *constants})
    inputs = [helper.make_tensor_value_info(one, (types or {}).get(one, TensorProto.FLOAT), shape) for one in names]
    outputs = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, 'graph', inputs, outputs, tensors)
    imports = [helper.make_opsetid('', opset), *model.pop('opsets', ())]
    onnx.save(helper.make_model(graph, opset_imports=imports, **model), path)
    return path


def node(kind: str, *inputs: str, outputs: tuple[str, ...] = ('y',), **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, outputs, name=f'/head/{kind}', **attributes)


def test_a_supported_graph(tmp_path: Path) -> None:
    path = write(
        tmp_path / 'model.onnx',
        node('GridSample', 'x', 'grid', outputs=('a',), mode='bilinear'),
        node('ReduceMax', 'a', 'axes', outputs=('b',), keepdims=0),
        node('TopK', 'b', 'k', outputs=('c', 'indices')),
        node('Resize', 'x', '', 'scales', outputs=('d',), mode='cubic', coordinate_transformation_mode='half_pixel'),
        node('Where', 'mask', 'd', 'd'),
        types={'mask': TensorProto.BOOL},
        constants={'axes': np.array([1]), 'k': np.array([3839]), 'scales': np.array([1, 1, 2, 2], np.float32)},
    )
    assert check_tensorrt(path) == []


def test_the_list() -> None:
    assert {'GatherND', 'GridSample', 'Mod', 'NonZero', 'TopK'} <= SUPPORTED
    assert not {'Det', 'DynamicQuantizeLinear', 'MatMulInteger', 'QLinearConv', 'Unique'} & SUPPORTED
    removed = {'ImageScaler', 'ParametricSoftplus', 'ScaledTanh'}  # from ONNX
    recent = {'Attention', 'RMSNormalization', 'RotaryEmbedding', 'TensorScatter'}  # not in every onnx
    assert {one for one in SUPPORTED if not onnx.defs.has(one)} <= removed | recent  # no misspelled name


INT64, UINT8, BOOL = TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL


@pytest.mark.parametrize(
    ('nodes', 'options', 'message'),
    [
        ([node('Unique', 'x')], {}, 'Unique is not supported by TensorRT 10.15 (1 node: /head/Unique)'),
        ([node('MatMul', 'x', 'x')], {'types': {'x': INT64}}, 'MatMul is not supported for INT64'),
        ([node('Concat', 'x', 'x', axis=0)], {'types': {'x': UINT8}}, 'Concat is not supported for UINT8'),
        ([node('Where', 'm', 'x', 'x')], {'types': {'m': BOOL, 'x': UINT8}}, 'Where is not supported for UINT8'),
        ([node('Add', 'x', 'x')], {'types': {'x': BOOL}}, 'Add is not supported for BOOL'),
        (
            [node('Cast', 'x', to=BOOL, outputs=('a',)), node('Softmax', 'b'), node('Identity', 'a')],
            {'types': {'b': INT64}}, 'Softmax is not supported for INT64',
        ),
        (
            [node('TopK', 'x', 'k', outputs=('y', 'i'))], {'constants': {'k': np.array([3840])}},
            'TopK is not supported with K = 3840: K must be less than 3840',
        ),
        ([node('TopK', 'x', 'k', outputs=('y', 'i'), sorted=0)], {'constants': {'k': np.array([3])}}, 'sorted = 0'),
        (
            [node('Resize', 'x', '', 's', coordinate_transformation_mode='tf_crop_and_resize')], {},
            'Resize is not supported with coordinate_transformation_mode = tf_crop_and_resize',
        ),
        ([node('Resize', 'x', '', 's', antialias=1, mode='linear')], {}, 'Resize is not supported with antialias = 1'),
        (
            [node('GridSample', 'x', 'g', mode='linear')], {'opset': 20},
            'GridSample is read as nearest with mode = linear, the name since opset 20: export with opset 18',
        ),
        ([node('GridSample', 'x', 'g')], {'shape': (1, 2, 3, 4, 5)}, 'of 5 dimensions, only for 4'),
        (
            [node('MaxPool', 'x', kernel_shape=(2, 2), outputs=('y', 'i'))], {},
            'MaxPool is supported with its first output only',
        ),
        ([node('AveragePool', 'x', kernel_shape=(2, 2), dilations=(2, 2))], {'opset': 19}, 'with dilations'),
        ([node('ScatterND', 'x', 'i', 'x', reduction='add')], {'types': {'i': INT64}}, 'with reduction = add'),
        ([node('ReduceSum', 'x', 'a')], {'types': {'a': INT64}}, 'ReduceSum is not supported with axes that the graph'),
        ([node('CumSum', 'x', 'a')], {'types': {'a': INT64}}, 'CumSum is not supported with an axis that the graph'),
        (
            [node('QuantizeLinear', 'x', 's', 'z')], {'constants': {'z': np.array(3, np.int8)}},
            'QuantizeLinear is not supported with a zero point that is not 0',
        ),
        (
            [node('QuantizeLinear', 'x', 's', 'z')], {'constants': {'z': np.array(0, np.uint8)}},
            'QuantizeLinear is not supported for UINT8',
        ),
        ([node('DequantizeLinear', 'x', 's')], {'types': {'x': UINT8}}, 'DequantizeLinear is not supported for UINT8'),
        (
            [node('Sample', 'x', domain='mmdeploy')], {'opsets': [helper.make_opsetid('mmdeploy', 1)]},
            'mmdeploy.Sample is not an operator of ONNX: it needs a plugin',
        ),
        ([node('Relu', 'x')], {'opset': 8}, 'opset 8 is outside 9 to 24'),
    ],
)  # fmt: skip
def test_what_is_not_supported(tmp_path: Path, nodes: list[Any], options: dict[str, Any], message: str) -> None:
    problems = check_tensorrt(write(tmp_path / 'model.onnx', *nodes, **options))
    assert len(problems) == 1
    assert message in problems[0]


def test_nodes_are_counted_once_a_problem(tmp_path: Path) -> None:
    path = write(
        tmp_path / 'm.onnx', node('Det', 'x', outputs=('a',)), node('Det', 'x', outputs=('b',)), node('Det', 'x')
    )
    assert check_tensorrt(path) == ['Det is not supported by TensorRT 10.15 (3 nodes: /head/Det, ...)']


def test_branches_and_functions_are_checked(tmp_path: Path) -> None:
    output = helper.make_tensor_value_info('y', TensorProto.FLOAT, None)
    branches = {
        f'{name}_branch': helper.make_graph([node(kind, 'x')], name, [], [output])
        for name, kind in (('then', 'Relu'), ('else', 'Det'))
    }
    path = write(tmp_path / 'if.onnx', node('If', 'c', **branches), node('Relu', 'x'), types={'c': BOOL}, shape=(1,))
    assert [one.split(' is ')[0] for one in check_tensorrt(path)] == ['Det']

    function = helper.make_function('own', 'Block', ['a'], ['y'], [node('Det', 'a')], [helper.make_opsetid('', 18)])
    own = {'opsets': [helper.make_opsetid('own', 1)], 'functions': [function]}
    path = write(tmp_path / 'function.onnx', node('Block', 'x', domain='own'), **own)
    assert [one.split(' is ')[0] for one in check_tensorrt(path)] == ['Det']


def test_weights_in_another_file_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / 'm.onnx', node('MatMul', 'x', 'w'), constants={'w': np.ones((8, 8), np.float32)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location='m.data', size_threshold=0)
    (tmp_path / 'm.data').unlink()
    assert check_tensorrt(path) == []


def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape("no file 'missing.onnx'")):
        check_tensorrt('missing.onnx')
    for content in (b'no model', b''):
        (tmp_path / 'bad.onnx').write_bytes(content)
        with pytest.raises(ValueError, match=r'bad\.onnx is no ONNX file'):
            check_tensorrt(tmp_path / 'bad.onnx')

    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match='checking an ONNX file needs onnx: pip install onnx'):
        check_tensorrt(tmp_path / 'bad.onnx')


@pytest.mark.thorough
@pytest.mark.slow
def test_the_page_with_an_exported_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('mmdet')
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    import mmitpn
    from mmitpn.deploy.runtimes import load_session

    monkeypatch.chdir(tmp_path)
    mmitpn.export('nano-shapes', size=(224, 320), batch=1, grid_sample='gather', output='model.onnx')
    nodes = onnx.load('model.onnx').graph.node
    assert check_tensorrt('model.onnx') == []
    assert 'GridSample' not in {one.op_type for one in nodes}

    page = (ROOT / 'docs' / 'tensorrt.md').read_text(encoding='utf-8')
    names = subprocess.run(
        [sys.executable, '-c', re.search(r'python -c "(.*?)" > fp32\.txt', page, re.DOTALL)[1]],
        check=True, capture_output=True, text=True,
    ).stdout.strip().split(',')  # fmt: skip
    assert '/backbone/blocks.0/attn/Softmax:fp32' in names
    assert {one.removesuffix(':fp32') for one in names} < {one.name for one in nodes}

    shutil.copytree(ROOT / 'demo', 'images', ignore=shutil.ignore_patterns('*.py', '*.md', '__pycache__'))
    Path('data.py').write_text(re.search(r'```python\n(.*?def load_data.*?)```', page, re.DOTALL)[1], encoding='utf-8')
    inputs = list(runpy.run_path('data.py')['load_data']())
    assert len(inputs) == 4
    session = load_session('model.onnx')
    assert all(session.run(one)['scores'].max() > 0.3 for one in inputs)
