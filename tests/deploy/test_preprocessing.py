"""Images become the inputs of an exported network as the frameworks' pipelines make them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest

from mmitpn.deploy.metadata import SCHEMA, ExportInfo
from mmitpn.deploy.preprocessing import pad_images, prepare_image, read_image
from mmitpn.version import __version__

INFO = ExportInfo(
    task='detection', outputs=('boxes',), classes=('cat', 'dog'), mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375), to_rgb=True, steps=(), size=None, batch=None, divisor=1, least=32, settings={},
)  # fmt: skip


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ('host', 'step'),
    [
        ('mmdet', {'type': 'Resize', 'scale': (133, 80), 'keep_ratio': True}),
        ('mmdet', {'type': 'Resize', 'scale': (64, 96), 'keep_ratio': False}),
        ('mmseg', {'type': 'Resize', 'scale': (2048, 77), 'keep_ratio': True, 'interpolation': 'area'}),
        ('mmpretrain', {'type': 'ResizeEdge', 'scale': 72, 'backend': 'pillow', 'interpolation': 'bicubic'}),
        ('mmpretrain', {'type': 'ResizeEdge', 'scale': 72, 'edge': 'long'}),
        ('mmpretrain', {'type': 'CenterCrop', 'crop_size': (61, 48)}),
    ],
    ids=lambda one: one if isinstance(one, str) else '-'.join(map(str, one.values())),
)
@pytest.mark.parametrize('size', [(95, 141), (141, 95), (100, 100), (43, 300)])
def test_steps_are_those_of_the_frameworks(host, step, size):
    pytest.importorskip(host)
    from mmengine.config import Config

    from mmitpn.apis.export import _find_steps
    from mmitpn.apis.framework_model import Compose, DefaultScope

    pipeline = [
        {'type': 'LoadImageFromFile'},
        step,
        {'type': 'PackInputs' if host == 'mmpretrain' else 'PackDetInputs'},
    ]
    dataset = {'type': 'CocoDataset', 'pipeline': pipeline[:2]}
    cfg = Config({'default_scope': host, 'test_dataloader': {'dataset': dataset}})
    image = image_of(*size)
    with DefaultScope.overwrite_default_scope(host):
        expected = Compose([step])({'img': image.copy(), 'img_shape': size, 'ori_shape': size})['img']
    plain = replace(INFO, steps=_find_steps(cfg), mean=(0.0,) * 3, std=(1.0,) * 3, to_rgb=False)
    found = prepare_image(image, plain)
    assert (found.pixels.transpose(1, 2, 0) == expected).all()
    assert found.original == size


def test_normalization_is_that_of_the_data_preprocessor():
    torch = pytest.importorskip('torch')
    model = pytest.importorskip('mmdet.models.data_preprocessors')
    preprocessor = model.DetDataPreprocessor(mean=INFO.mean, std=INFO.std, bgr_to_rgb=True)
    image = image_of(33, 47)
    inputs = {'inputs': [torch.from_numpy(image.transpose(2, 0, 1).copy())], 'data_samples': None}
    assert (prepare_image(image, INFO).pixels == preprocessor(inputs)['inputs'][0].numpy()).all()


def test_a_batch_is_padded_at_the_right_and_bottom():
    images = [np.ones((3, 33, 70), np.float32), np.ones((3, 60, 40), np.float32)]
    inputs = pad_images(images, replace(INFO, divisor=16))
    assert inputs['images'].shape == (2, 3, 64, 80)
    assert inputs['padding_mask'].shape == (2, 64, 80)
    assert (inputs['images'][:, 0] == ~inputs['padding_mask']).all()
    assert (~inputs['padding_mask']).sum((1, 2)).tolist() == [33 * 70, 60 * 40]


def test_small_images_are_padded_to_the_least_size_and_a_fixed_batch_is_filled():
    assert pad_images([np.ones((3, 5, 50), np.float32)], INFO)['images'].shape == (1, 3, 32, 50)
    fixed = replace(INFO, batch=4, size=(40, 64))
    inputs = pad_images([np.ones((3, 5, 50), np.float32)], fixed)
    assert inputs['images'].shape == (4, 3, 40, 64)
    assert not inputs['padding_mask'][1:].any()  # an image of padding alone has no positions
    with pytest.raises(ValueError, match=r'is 41x50 after resizing, but the file takes 40x64 .*--size dynamic'):
        pad_images([np.ones((3, 41, 50), np.float32)], fixed)


@pytest.mark.parametrize('size', [(300, 100), (100, 300), (20, 20)])
def test_images_fit_into_a_file_of_one_size(size):
    step = {'type': 'Resize', 'scale': [133, 80], 'keep_ratio': True, 'interpolation': 'bilinear', 'backend': 'cv2'}
    info = replace(INFO, size=(80, 133), steps=({**step, 'within': [80, 133]},))
    height, width = prepare_image(image_of(*size), info).size
    assert height <= 80
    assert width <= 133
    assert (height, width)[int(size[0] < size[1])] == (80, 133)[int(size[0] < size[1])]


def test_files_are_read_as_opencv_does(tmp_path):
    image = image_of(9, 12)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    assert (read_image(str(tmp_path / 'a.png')) == image).all()
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    (tmp_path / 'c.jpg').write_bytes(b'')
    for name in ('b.jpg', 'c.jpg'):
        with pytest.raises(ValueError, match='OpenCV cannot decode it'):
            read_image(str(tmp_path / name))


def test_metadata_round_trip():
    info = replace(INFO, size=(40, 64), steps=({'type': 'CenterCrop', 'crop_size': [4, 5]},), classes=('Größe', 'b'))
    assert ExportInfo.from_json(info.to_json(), 'a.onnx') == info


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'schema': SCHEMA + 1, 'version': '99.0'}, rf'written by mmitpn 99.0, which is newer than .*{__version__}'),
        ({'task': 'tracking'}, r"damaged \(task 'tracking', without nothing\)"),
        ({'schema': 'x'}, r'cannot be read'),
    ],
)
def test_wrong_metadata(change, message):
    with pytest.raises(ValueError, match=message):
        ExportInfo.from_json(json.dumps({**asdict(INFO), **change}), 'a.onnx')


def test_missing_metadata():
    values = asdict(INFO)
    del values['mean']
    with pytest.raises(ValueError, match=r"damaged \(task 'detection', without mean\)"):
        ExportInfo.from_json(json.dumps(values), 'a.onnx')
    with pytest.raises(ValueError, match=r'a.onnx has no metadata of mmitpn .*mmitpn export'):
        ExportInfo.from_json(None, 'a.onnx')
