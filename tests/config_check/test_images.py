"""The size that a pipeline's loader gives, against the loader itself."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('mmcv', reason='mmcv is not installed')

import cv2
from mmcv.transforms import BaseTransform, LoadImageFromFile

from mmitpn.config_check import images
from mmitpn.config_check.images import build_image_loader, read_header, stored_size

TURNS = {
    ('cv2', 'color'): True,
    ('cv2', 'grayscale'): True,
    ('cv2', 'unchanged'): False,
    ('cv2', 'color_ignore_orientation'): False,
    ('cv2', 'grayscale_ignore_orientation'): False,
    ('pillow', 'color'): True,
    ('pillow', 'grayscale'): True,
    ('pillow', 'unchanged'): False,
    ('pillow', 'color_ignore_orientation'): False,
    ('pillow', 'grayscale_ignore_orientation'): False,
}


def write(path, orientation=None, size=(40, 24)):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize(('backend', 'color_type'), TURNS)
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp'])
def test_sizes_are_the_loaders_for_every_orientation(tmp_path, backend, color_type, suffix):
    loader = build_image_loader([{'type': 'LoadImageFromFile', 'imdecode_backend': backend, 'color_type': color_type}])
    for orientation in (None, *range(1, 9)):
        path = write(tmp_path / f'{orientation}{suffix}', orientation)
        height, width = loader.transform({'img_path': str(path)})['img'].shape[:2]
        assert loader.size(path) == loader.quick_size(path) == (width, height), orientation
        turned = (orientation or 1) >= 5
        if suffix == '.jpg':  # whether a tag in a PNG or WebP counts is the business of the decoding library
            assert (width, height) == ((24, 40) if turned and TURNS[backend, color_type] else (40, 24))
        assert stored_size(path) == read_header(path)[:2] == ((40, 24), orientation or 1)


def test_most_images_are_not_decoded(tmp_path, monkeypatch):
    loader = build_image_loader([])
    monkeypatch.setattr(loader, 'transform', LoadImageFromFile())
    monkeypatch.setattr(images.ImageLoader, 'size', lambda *_: pytest.fail('the image was decoded'))
    for orientation in (None, 1, 2, 3, 4):
        assert loader.quick_size(write(tmp_path / 'a.jpg', orientation)) == (40, 24)


def test_settings_that_change_the_size_are_not_guessed(tmp_path):
    path = write(tmp_path / 'a.jpg')
    settings = {'type': 'LoadImageFromFile', 'color_type': cv2.IMREAD_REDUCED_COLOR_2}
    assert build_image_loader([settings]).quick_size(path) == (20, 12)

    class HalfSize(LoadImageFromFile):
        def transform(self, results):
            results = super().transform(results)
            results['img'] = results['img'][::2, ::2]
            return results

    assert build_image_loader([{'type': HalfSize}]).quick_size(path) == (20, 12)
    assert build_image_loader([HalfSize()]).quick_size(path) == (20, 12)


def test_which_transform_is_the_loader(tmp_path):
    class Other(BaseTransform):
        def transform(self, results):
            return results

    load = {'type': 'mmcv.LoadImageFromFile', 'color_type': 'color_ignore_orientation'}
    loader = build_image_loader([{'type': 'LoadAnnotations'}, load, {'type': 'LoadImageFromFile'}])
    assert loader.quick_size(write(tmp_path / 'a.jpg', 6)) == (40, 24)
    assert loader.name == "LoadImageFromFile(imdecode_backend='cv2', color_type='color_ignore_orientation')"
    assert build_image_loader([{'type': Other}]) is None
    assert build_image_loader([{'type': LoadImageFromFile}]).name == build_image_loader(None).name


def test_files_that_cannot_be_loaded(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_bytes(b'a web page')
    with pytest.raises(OSError, match=r'LoadImageFromFile\(.*\) cannot read .*a\.jpg'):
        build_image_loader([]).quick_size(path)
    with pytest.raises(OSError, match=r'Pillow cannot read .*a\.jpg'):
        stored_size(path)
    assert build_image_loader([{'type': 'LoadImageFromFile', 'ignore_empty': True}]).size(tmp_path / 'no.jpg') is None
