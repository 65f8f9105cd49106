"""Int8: what is quantized and what stays in float, calibration with images of several sizes, and bad input."""

from __future__ import annotations

import numpy as np
import pytest

from mmitpn.deploy.metadata import TASKS
from mmitpn.deploy.quantize import PRESETS, find_pooling, float_layers, match_names, quantize_onnx, quantize_openvino

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

CHANNELS = 16


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    """A convolution, an MLP and a head over images of any size, as a file."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    shapes = {'kernel': (CHANNELS, 3, 4, 4), 'fc1': (CHANNELS, 32), 'fc2': (32, CHANNELS), 'classes': (CHANNELS, 5)}
    weights = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32) / 4, name)
        for name, shape in shapes.items()
    ]
    nodes = [
        ('/backbone/patch_embed/Conv', 'Conv', ['images', 'kernel'], 'patches', {'strides': [4, 4]}),
        ('/backbone/Transpose', 'Transpose', ['patches'], 'tokens', {'perm': [0, 2, 3, 1]}),
        ('/backbone/blocks.1/fc1/MatMul', 'MatMul', ['tokens', 'fc1'], 'hidden', {}),
        ('/backbone/blocks.1/Relu', 'Relu', ['hidden'], 'active', {}),
        ('/backbone/blocks.10/fc2/MatMul', 'MatMul', ['active', 'fc2'], 'features', {}),
        ('/head/MatMul', 'MatMul', ['features', 'classes'], 'logits', {}),
    ]
    graph = helper.make_graph(
        [
            helper.make_node(kind, inputs, [output], name=name, **settings)
            for name, kind, inputs, output, settings in nodes
        ],
        'network',
        [helper.make_tensor_value_info('images', TensorProto.FLOAT, ['batch', 3, 'height', 'width'])],
        [helper.make_tensor_value_info('logits', TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    path = tmp_path_factory.mktemp('network') / 'fp32.onnx'
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def make_batches():
    generator = np.random.default_rng(1)
    for shape in ((1, 3, 32, 48), (2, 3, 64, 32), (1, 3, 41, 53)):
        # The network has no padding mask, which is left out.
        yield {'images': generator.normal(size=shape).astype(np.float32), 'padding_mask': np.zeros(1, bool)}


def run_onnx(path, batch):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, dict(batch))[0]


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_onnx_in_int8_is_close_for_images_of_other_sizes(network, tmp_path):
    target = tmp_path / 'new' / 'int8.onnx'
    names = quantize_onnx(network, target, make_batches())
    assert len(names) == 4
    other = {'images': np.random.default_rng(2).normal(size=(3, 3, 56, 36)).astype(np.float32)}
    assert 0 < relative_error(run_onnx(target, other), run_onnx(network, other)) < 0.03
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(target).graph.initializer}
    kernel, scales = weights['kernel_quantized'], weights['kernel_scale']
    assert kernel.dtype == np.int8
    assert np.abs(kernel.astype(int)).max() <= 64  # 7 bits: no saturation without VNNI
    assert scales.shape == (CHANNELS,)
    assert [one.name for one in target.parent.iterdir()] == ['int8.onnx']
    assert [one.name for one in network.parent.iterdir()] == ['fp32.onnx']


def test_onnx_keeps_modules_in_float(network, tmp_path):
    target = tmp_path / 'int8.onnx'
    names = quantize_onnx(network, target, make_batches(), keep=['/backbone/blocks.1', 'head'])
    assert set(names) == {'/backbone/patch_embed/Conv', '/backbone/blocks.10/fc2/MatMul'}
    model = onnx.load(target)
    inputs = {node.name: list(node.input) for node in model.graph.node}
    assert inputs['/backbone/blocks.1/fc1/MatMul'][1] == 'fc1'
    assert inputs['/head/MatMul'][1] == 'classes'
    assert {'fc1', 'classes'} <= {one.name for one in model.graph.initializer}


@pytest.mark.parametrize(
    ('batches', 'keep', 'message'),
    [
        ([], (), 'there is no image to calibrate int8 with'),
        (
            [{'image': np.zeros((1, 3, 8, 8), np.float32)}],
            (),
            r"batches have image, but the model takes \['images'\] too",
        ),
        (list(make_batches()), ('/backbone', '/head'), 'leaves nothing of fp32.onnx to quantize'),
    ],
)
def test_onnx_refuses(network, tmp_path, batches, keep, message):
    with pytest.raises(ValueError, match=message):
        quantize_onnx(network, tmp_path / 'int8.onnx', batches, keep=keep)
    assert not list(tmp_path.iterdir())


def test_nothing_stays_of_a_calibration_that_fails(network, tmp_path):
    wrong = {'images': np.zeros((1, 4, 8, 8), np.float32)}
    with pytest.raises(Exception, match='images'):
        quantize_onnx(network, tmp_path / 'int8.onnx', [*make_batches(), wrong])
    assert not list(tmp_path.iterdir())
    assert [one.name for one in network.parent.iterdir()] == ['fp32.onnx']


@pytest.mark.thorough  # tests/deploy/test_openvino.py
def test_openvino_in_int8_keeps_modules_in_float(network):
    openvino = pytest.importorskip('openvino')
    pytest.importorskip('nncf')
    model = openvino.convert_model(network)
    before = len(model.get_ordered_ops())

    def count(one):
        return sum(node.get_type_name() == 'FakeQuantize' for node in one.get_ordered_ops())

    all_parts = quantize_openvino(model, make_batches())
    some_parts = quantize_openvino(model, make_batches(), keep=['/backbone'])
    assert count(all_parts) > count(some_parts) > 0
    assert len(model.get_ordered_ops()) == before
    other = np.random.default_rng(2).normal(size=(3, 3, 56, 36)).astype(np.float32)
    expected, *found = (
        openvino.Core().compile_model(one, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})(other)[0]
        for one in (model, all_parts, some_parts)
    )
    assert 0 < relative_error(found[1], expected) < relative_error(found[0], expected) < 0.05
    with pytest.raises(ValueError, match='there is no image to calibrate'):
        quantize_openvino(model, iter(()))


@pytest.mark.thorough  # tests/deploy/test_openvino.py
def test_products_with_sizes_are_found():
    openvino = pytest.importorskip('openvino')
    from openvino import opset13 as ops

    x = ops.parameter([-1, 2], np.float32)
    weighted = ops.matmul(x, np.ones((2, 2), np.float32), transpose_a=False, transpose_b=False)
    sizes = ops.unsqueeze(ops.convert(ops.shape_of(x), 'f32'), 1)
    pooled = ops.matmul(weighted, sizes, transpose_a=False, transpose_b=False)
    pooled.set_friendly_name('/head/pool/MatMul')
    assert find_pooling(openvino.Model([pooled], [x])) == ['/head/pool/MatMul']


def test_paths_end_between_slashes():
    names = ['/backbone/blocks.1/attn/MatMul', '/backbone/blocks.10/attn/MatMul_1', '/head/MatMul', '/MatMul_7']
    assert match_names(names, ['/backbone/blocks.1']) == names[:1]
    assert match_names(names, ['backbone/blocks.*/attn/']) == names[:2]
    assert match_names(names, ['/MatMul_7', '/no/such/module']) == names[3:]
    assert match_names(names, []) == []
    with pytest.raises(TypeError, match=r"keep is the string '/head'; give a list of paths"):
        match_names(names, '/head')


def test_presets_are_for_tasks_and_have_reasons():
    assert set(PRESETS) <= set(TASKS)
    for task in TASKS:
        assert float_layers(task) == tuple(PRESETS.get(task, ()))
    assert all(len(reason) > 20 for preset in PRESETS.values() for reason in preset.values())
    with pytest.raises(ValueError, match=r"task is 'dino'; allowed: detection, queries"):
        float_layers('dino')


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize('kind', ['onnx', 'openvino'])
def test_a_detector_in_int8_finds_the_same_objects(kind, tmp_path):
    import mmitpn
    from mmitpn.datasets import generate_shapes
    from mmitpn.deploy.runtimes import SUFFIXES

    pytest.importorskip('nncf' if kind == 'openvino' else 'onnxruntime')
    generate_shapes(tmp_path / 'shapes', num_train=16, num_val=16)
    images = tmp_path / 'shapes' / 'coco'
    target = tmp_path / ('int8' + next(suffix for suffix, name in SUFFIXES.items() if name == kind))
    mmitpn.export('nano-shapes', format=kind, output=target, precision='int8', calibration=images / 'train2017')
    quantized = mmitpn.Predictor(target)
    eager = mmitpn.Predictor('nano-shapes', device='cpu')
    files = sorted((images / 'val2017').iterdir())
    same = total = 0
    for expected, found in zip(eager.predict(files, score=0.5), quantized.predict(files, score=0.3), strict=True):
        for box, label in zip(expected.boxes, expected.labels, strict=True):
            near = np.abs(found.boxes - box).max(axis=1, initial=0) < 4  # pixels
            same += bool((near & (found.labels == label)).any())
            total += 1
    assert total > 20
    assert same >= 0.95 * total
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]
