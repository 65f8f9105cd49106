"""One file predicts what the model predicts: pairs of tasks and formats; and what is refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import mmitpn
from mmitpn.apis.parity import compare
from mmitpn.deploy.runtimes import load_session

SIZES = ((150, 131), (97, 140), (128, 128))


@pytest.fixture(scope='module')
def arrays() -> list[np.ndarray]:
    """Images of three sizes, smooth so that predictions differ from place to place."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for size in SIZES:
        coarse = torch.rand(1, 3, 7, 9, generator=generator)
        image = nn.functional.interpolate(coarse, size=size, mode='bicubic').clamp(0, 1)[0]
        images.append((255 * image.permute(1, 2, 0)).byte().numpy())
    return images


def spread_scores(case) -> None:
    """Let the class scores of random weights lie between 0 and 1, in a case of ``small_model``."""
    content = torch.load(case.weights, weights_only=True)
    generator = torch.Generator().manual_seed(1)
    for name, value in content['state_dict'].items():
        if 'class_embed' in name or 'cls_branches' in name:
            scale = 3.0 * value.shape[-1] ** -0.5 if value.ndim == 2 else 0.5
            value.copy_(scale * torch.randn(value.shape, generator=generator))
    torch.save(content, case.weights)


def check_parity(model, file, images, *, batch=1, score=0.1):
    pairs = zip(model.predict(images, score=score / 2), file.predict(images, score=score / 2, batch=batch), strict=True)
    parity = compare(pairs, score=score)
    assert parity.is_equal, parity.rows()
    return parity


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> Path:
    """The shipped detector for any size and batch."""
    pytest.importorskip('mmdet')
    pytest.importorskip('onnxscript')
    return mmitpn.export('nano-shapes', output=tmp_path_factory.mktemp('export') / 'nano.onnx')


@pytest.mark.slow
def test_a_detector_for_any_size(detector, images, arrays):
    model, file = mmitpn.Predictor('nano-shapes', device='cpu'), mmitpn.Predictor(detector)
    assert (file.names, file.outputs) == (model.names, model.outputs)
    assert check_parity(model, file, images).objects >= 3
    check_parity(model, file, [*images, *arrays], batch=3)
    tiled = [next(one.predict(images[0], tile=96)) for one in (model, file)]
    assert compare([tuple(tiled)]).is_equal


@pytest.mark.slow
def test_images_of_a_batch_may_have_other_sizes(detector, arrays):
    """The padding mask makes the result of an image that of the image alone."""
    from mmitpn.deploy.preprocessing import pad_images, prepare_image

    session = load_session(detector)
    pixels = [prepare_image(image, session.info).pixels for image in arrays]
    together = session.run(pad_images(pixels, session.info))
    for index, one in enumerate(pixels):
        alone = session.run(pad_images([one], session.info))
        np.testing.assert_allclose(together['scores'][index], alone['scores'][0], atol=1e-3)
        np.testing.assert_allclose(together['boxes'][index][:3], alone['boxes'][0][:3], atol=0.2)


@pytest.mark.slow
def test_a_file_is_of_standard_operators_and_has_no_paths(detector):
    model = onnx.load(detector)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [('', 18)]
    content = detector.read_bytes()
    for text in (str(Path(mmitpn.__file__).parents[1]), sys.prefix, 'Traceback', '.py'):
        assert text.encode() not in content
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith('/backbone/blocks.1/attn/') for name in names)
    shapes = {one.name: [size.dim_param or size.dim_value for size in one.type.tensor_type.shape.dim]
              for one in model.graph.input}  # fmt: skip
    assert shapes == {'images': ['batch', 3, 'height', 'width'], 'padding_mask': ['batch', 'height', 'width']}


@pytest.mark.slow
def test_the_blocks_of_the_page_run(detector, tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'demo').symlink_to(root / 'demo')
    (tmp_path / 'nano-shapes.onnx').symlink_to(detector)
    monkeypatch.setattr(mmitpn, 'export', lambda _, output: output, raising=False)  # the file is there
    values = {}
    blocks = re.findall(r'```python\n(.*?)```', (root / 'docs/export.md').read_text(encoding='utf-8'), re.DOTALL)
    for block in blocks:
        exec(block, values)  # noqa: S102
    assert 'Result(shapes_1.jpg, ' in capsys.readouterr().out
    assert values['outputs']['boxes'].shape == (2, 80, 4)


@pytest.mark.thorough  # tests/deploy/test_openvino.py
@pytest.mark.slow
def test_label_maps_in_openvino(small_model, images, arrays, tmp_path):
    pytest.importorskip('openvino')
    case = small_model('upernet')
    path = mmitpn.export(case.config, case.weights, format='openvino', output=tmp_path / 'a.xml')
    model, file = mmitpn.Predictor(case.config, case.weights, device='cpu'), mmitpn.Predictor(path)
    check_parity(model, file, images)
    check_parity(model, file, arrays, batch=2)


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        pytest.param('instances', {'format': 'openvino', 'size': (160, 192), 'batch': 2}, marks=pytest.mark.thorough),
        pytest.param('boxes', {'grid_sample': 'gather', 'size': (160, 192), 'batch': 1}, marks=pytest.mark.thorough),
        pytest.param('boxes', {'format': 'torch'}, marks=pytest.mark.thorough),
        pytest.param('instances', {}, marks=pytest.mark.thorough),
        pytest.param('panoptic', {}, marks=pytest.mark.thorough),
        pytest.param('panoptic', {'format': 'openvino'}, marks=pytest.mark.thorough),
        pytest.param('semantic', {}, marks=pytest.mark.thorough),
        pytest.param('upernet', {}, marks=pytest.mark.thorough),
    ],
    ids=lambda one: one if isinstance(one, str) else '-'.join(map(str, one.values())),
)
@pytest.mark.slow
def test_other_tasks_and_formats(small_model, images, tmp_path, kind, options):
    if options.get('format') == 'openvino':
        pytest.importorskip('openvino')
    case = small_model(kind)
    spread_scores(case)
    suffix = {'openvino': '.xml', 'torch': '.pt2'}.get(options.get('format'), '.onnx')
    path = mmitpn.export(case.config, case.weights, output=tmp_path / f'a{suffix}', **options)
    model, file = mmitpn.Predictor(case.config, case.weights, device='cpu'), mmitpn.Predictor(path, trust=True)
    if 'size' in options:  # the same size rule
        height, width = options['size']
        model._backend._transform.transforms[0].scale = (width, height)
    check_parity(model, file, images, batch=options.get('batch', 2))


def test_a_classifier(small_model, images, arrays, tmp_path):
    case = small_model('classifier')
    path = mmitpn.export(case.config, case.weights, output=tmp_path / 'a.onnx', size='64x64')
    model, file = mmitpn.Predictor(case.config, case.weights, device='cpu'), mmitpn.Predictor(path)
    check_parity(model, file, [*images, *arrays], batch=4)
    assert repr(file).endswith('a.onnx, fp32, 3 classes, gives probabilities, on cpu)')
    program = mmitpn.export(case.config, case.weights, format='torch', output=tmp_path / 'a.pt2')
    with pytest.raises(ValueError, match=r'a.pt2: torch may execute what is in a .pt2 file; set trust=True'):
        mmitpn.Predictor(program)
    check_parity(model, mmitpn.Predictor(program, trust=True), [*images, *arrays], batch=4)
    half = mmitpn.export(case.config, case.weights, output=tmp_path / 'b.onnx', size='64x64', precision='fp16')
    assert half.stat().st_size < 0.6 * path.stat().st_size
    found = next(mmitpn.Predictor(half).predict(images[0]))
    np.testing.assert_allclose(found.probabilities, next(model.predict(images[0])).probabilities, atol=2e-3)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'format': 'tflite'}, r"format is 'tflite'; allowed: onnx, openvino, torch"),
        ({'format': 'torch', 'precision': 'fp16'}, r"precision is 'fp16', but the format torch has fp32 alone"),
        ({'precision': 'int4'}, r"precision is 'int4'; allowed: fp32, fp16, int8"),
        ({'precision': 'int8'}, r'int8 needs calibration: a folder of 32 or more images'),
        ({'calibration': 'demo'}, r'calibration is for precision int8, but precision is fp32'),
        ({'grid_sample': 'none'}, r"grid_sample is 'none'; allowed: native, gather"),
        ({'size': '64'}, r"size is '64'; give height and width, such as 512x768, or dynamic"),
        ({'size': '8x64'}, r'size is 8x64; the network takes sides from 32'),
        ({'size': '96x96'}, r'size is 96x96, but the test pipeline crops images to 64x64'),
        ({'batch': 0}, r'batch is 0'),
        ({'output': 'a.xml'}, r'the output file is a.xml; its name must end in .onnx for format onnx'),
    ],
)
def test_options(small_model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    case = small_model('classifier')
    with pytest.raises(ValueError, match=message):
        mmitpn.export(case.config, case.weights, **options)
    assert not list(tmp_path.iterdir())


def test_calibration_without_images(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = small_model('classifier')
    (tmp_path / 'empty').mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=r'empty'):
        mmitpn.export(
            case.config, case.weights, precision='int8', calibration=tmp_path / 'empty', output=tmp_path / 'a.onnx'
        )
    assert sorted(one.name for one in tmp_path.iterdir()) == ['empty']


def test_a_pipeline_that_a_file_cannot_repeat(small_model, tmp_path):
    case = small_model('classifier')
    text = case.config.read_text().replace("dict(type='CenterCrop', crop_size=64)", "dict(type='RandomFlip', prob=1.0)")
    config = tmp_path / 'flip.py'
    config.write_text(text)
    with pytest.raises(ValueError, match=r'RandomFlip.*which an exported file does not know; supported: Resize'):
        mmitpn.export(config, case.weights, output=tmp_path / 'a.onnx')


def test_modules_give_features_only():
    with pytest.raises(ValueError, match=r'features=True'):
        mmitpn.export(nn.Linear(2, 2))


@pytest.fixture(scope='module')
def tiny_file(tmp_path_factory) -> Path:
    backbone = mmitpn.FastITPN({'depths': (1, 0, 1), 'embed_dim': 32, 'num_heads': 1})
    return mmitpn.export(backbone, features=True, output=tmp_path_factory.mktemp('tiny') / 'a.onnx', size=(64, 96))


@pytest.mark.parametrize('ending', ['pt2', 'xml'])
def test_an_export_that_fails_leaves_the_earlier_file(ending, tmp_path, monkeypatch):
    formats = {'pt2': 'torch', 'xml': 'openvino'}
    if ending == 'xml':
        pytest.importorskip('openvino')
    backbone = mmitpn.FastITPN({'depths': (1, 0, 1), 'embed_dim': 32, 'num_heads': 1})
    earlier = tmp_path / f'a.{ending}'
    earlier.write_text('earlier')

    def fail(file, *_):
        assert file.is_file()
        raise RuntimeError('out of memory')

    monkeypatch.setattr(sys.modules['mmitpn.apis.export'], '_verify', fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        mmitpn.export(backbone, features=True, format=formats[ending], output=earlier, size=(64, 96))
    assert [one.name for one in tmp_path.iterdir()] == [earlier.name]
    assert earlier.read_text() == 'earlier'


def test_features(tiny_file):
    session = load_session(tiny_file, threads=1)
    maps = session.run({'images': np.zeros((2, 3, 64, 96), np.float32)})
    assert [one.shape for one in maps.values()] == [(2, 8, 16, 24), (2, 16, 8, 12), (2, 32, 4, 6)]
    with pytest.raises(ValueError, match=r'gives the features of backbone and pyramid, no predictions'):
        mmitpn.Predictor(tiny_file)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'weights': 'a.pth'}, r'has its weights inside'),
        ({'device': 'cuda:0'}, r"device is 'cuda:0', but exported files run on the CPU"),
        ({'dtype': 'bfloat16'}, r'the precision of an exported file is chosen at its export'),
        ({'threads': 0}, r'threads is 0'),
    ],
)
def test_arguments_of_a_predictor(tiny_file, arguments, message):
    with pytest.raises(ValueError, match=message):
        mmitpn.Predictor(tiny_file, **arguments)


def test_files_that_are_none(tiny_file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no file .*missing.onnx'):
        mmitpn.Predictor(tmp_path / 'missing.onnx')
    damaged = tmp_path / 'damaged.onnx'
    damaged.write_bytes(tiny_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'damaged.onnx cannot be loaded by ONNX Runtime'):
        mmitpn.Predictor(damaged)
    model = onnx.load(tiny_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'foreign.onnx')
    with pytest.raises(ValueError, match=r'foreign.onnx has no metadata of mmitpn'):
        mmitpn.Predictor(tmp_path / 'foreign.onnx')
    (tmp_path / 'alone.xml').write_text('<net/>')
    pytest.importorskip('openvino')
    with pytest.raises(FileNotFoundError, match=r'alone.xml has no alone.bin beside it'):
        mmitpn.Predictor(tmp_path / 'alone.xml')


def test_a_runtime_that_is_not_installed(tiny_file, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ImportError, match=r'a.onnx \(ONNX\) needs onnxruntime: pip install onnxruntime'):
        mmitpn.Predictor(tiny_file)


def test_the_command(tmp_path, capsys):
    from mmitpn.__main__ import main

    assert main(['export', 'nano-shapes', '--format', 'tflite', '-o', str(tmp_path / 'a.onnx')]) == 2
    assert "error: format is 'tflite'; allowed: onnx, openvino, torch" in capsys.readouterr().err
    assert main(['predict', 'demo', '--model', str(tmp_path / 'a.onnx')]) == 2
    assert 'no file' in capsys.readouterr().err
