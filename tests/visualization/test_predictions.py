"""Images of predictions beside the ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmitpn.utils import id2rgb
from mmitpn.visualization import draw_label_maps, draw_predictions, draw_segments
from mmitpn.visualization.image_grid import AnnotatedImage, class_color, draw_image_grid, text_color
from mmitpn.visualization.predictions import read_coco_images


@pytest.fixture
def data(tmp_path: Path) -> dict:
    """Five images of different shapes, the second without objects, and predictions for them."""
    images, annotations, results = [], [], []
    for i, (width, height) in enumerate([(120, 80), (80, 120), (100, 100), (64, 64), (200, 90)]):
        Image.fromarray(np.full((height, width, 3), 40 * i, np.uint8)).save(tmp_path / f'{i}.png')
        images.append({'id': 10 + i, 'file_name': f'{i}.png', 'width': width, 'height': height})
        if i != 1:
            annotations.append(
                {'id': i, 'image_id': 10 + i, 'category_id': 7, 'bbox': [5, 5, 40, 30], 'iscrowd': int(i == 2)}
            )
        found = {'image_id': 10 + i, 'category_id': 9, 'bbox': [8, 6, 40, 30]}
        results += [{**found, 'score': score} for score in (0.2, 0.6, 0.9)]
    categories = [{'id': 7, 'name': 'cat'}, {'id': 9, 'name': 'dog'}]
    ann_file = tmp_path / 'instances.json'
    ann_file.write_text(json.dumps({'images': images, 'annotations': annotations, 'categories': categories}))
    results_file = tmp_path / 'predictions.bbox.json'
    results_file.write_text(json.dumps(results))
    return {'ann_file': ann_file, 'img_dir': tmp_path, 'results': results_file}


def read(data: dict, **settings: float) -> tuple[list, list, dict[str, int]]:
    return read_coco_images(**data, **{'number': 5, 'score_threshold': 0.5, **settings})


def test_collects_ground_truth_and_predictions(data: dict) -> None:
    ground_truth, predicted, names = read(data)
    assert names == {'cat': 0, 'dog': 1}
    assert [len(one.boxes) for one in ground_truth] == [1, 0, 1, 1, 1]
    assert [list(one.crowd) for one in ground_truth] == [[], [], [0], [], []]
    assert ground_truth[0].boxes == [(5, 5, 45, 35)]
    assert predicted[0].texts == ['dog 0.90', 'dog 0.60']
    assert predicted[0].labels == [1, 1]
    assert [one.boxes for one in read(data, masks=False)[0]] == [one.boxes for one in ground_truth]
    del data['results']
    assert not any(one.boxes for one in read(data)[1])


def test_takes_images_evenly(data: dict) -> None:
    assert [one.image.max() for one in read(data, number=2)[0]] == [0, 80]
    assert len(read(data, number=50)[0]) == 5


@pytest.mark.parametrize(('number', 'columns'), [(5, 2), (1, 2), (4, 3)])
def test_draws(data: dict, tmp_path: Path, number: int, columns: int) -> None:
    out = draw_predictions(**data, out_file=tmp_path / 'new' / 'grid.png', number=number, columns=columns, tile=100)
    with Image.open(out) as image:
        assert image.format == 'PNG'
        width, height = image.size
    assert width == min(columns, number) * 2 * 100
    assert 130 < height < 700
    assert_classes(out, columns=min(columns, number), ground_truth={0}, found={1})


def assert_classes(path: Path, *, columns: int, ground_truth: set[int], found: set[int]) -> None:
    """Of which classes boxes are drawn, by their colors: on the left of each pair, and on the right."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB')).astype(int)[:-32]  # without the legend
    halves = np.split(pixels, 2 * columns, axis=1)
    for half, expected in zip((halves[::2], halves[1::2]), (ground_truth, found), strict=True):
        drawn = np.concatenate([part.reshape(-1, 3) for part in half])
        for category in (0, 1):
            same = (np.abs(drawn - np.asarray(class_color(category)) * 255).max(axis=1) < 4).sum()
            assert same > 50 if category in expected else same == 0


def test_no_predictions_at_all_still_draw(data: dict, tmp_path: Path) -> None:
    data['results'] = []
    out = draw_predictions(**data, out_file=tmp_path / 'grid.png', tile=64)
    assert_classes(out, columns=2, ground_truth={0}, found=set())


def test_masks_are_painted(data: dict) -> None:
    content = json.loads(data['ann_file'].read_text())
    for one in content['annotations']:
        one['segmentation'] = [[5, 5, 45, 5, 45, 35, 5, 35]]
    data['ann_file'].write_text(json.dumps(content))
    (first, *_), *_ = read(data)
    assert first.masks[0].sum() == 40 * 30
    (axes,) = draw_image_grid([first], columns=1, tile=100).axes
    painted = np.asarray(axes.images[0].get_array())
    np.testing.assert_array_equal(painted[20, 20], np.rint(np.asarray(class_color(0)) * 127.5))
    assert painted[60, 60].tolist() == [0, 0, 0]


def test_texts_never_overlap() -> None:
    image = AnnotatedImage(
        np.zeros((100, 100, 3), np.uint8), labels=[3] * 20, texts=['a name'] * 20, boxes=[(10, 30, 60, 80)] * 20
    )
    (axes,) = draw_image_grid([image], columns=1, tile=300).axes
    extents = [text.get_window_extent() for text in axes.texts]
    assert 1 < len(extents) < 20
    for index, extent in enumerate(extents):
        assert not extent.count_overlaps(extents[index + 1 :])
        assert axes.bbox.x0 <= extent.x0
        assert axes.bbox.y0 <= extent.y0
        assert extent.x1 <= axes.bbox.x1
        assert extent.y1 <= axes.bbox.y1


def write_maps(folder: Path) -> list[tuple[Path, Path, Path]]:
    """Two gray images of 40 x 60 pixels; classes 1 and 2 in the left and the right half, predicted the other way."""
    halves = np.repeat([[1, 2]], 30, axis=1).repeat(40, axis=0).astype(np.uint8)
    files = []
    for name in 'ab':
        paths = tuple(folder / f'{name}_{kind}.png' for kind in ('image', 'map', 'predicted'))
        for path, pixels in zip(paths, (np.full((40, 60, 3), 100, np.uint8), halves, halves[:, ::-1]), strict=True):
            Image.fromarray(np.ascontiguousarray(pixels)).save(path)
        files.append(paths)
    return files


def blended(label: int) -> np.ndarray:
    return 100 + 0.65 * (np.asarray(class_color(label)) * 255 - 100)


def columns_of_color(path: Path, color: np.ndarray) -> float:
    """Mean of the horizontal positions, from 0 to 1, of the pixels of a color above the legend."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB')).astype(float)[:-32]
    where = np.nonzero(np.abs(pixels - color).max(axis=2) < 2)[1]
    assert len(where) > 500
    return where.mean() / pixels.shape[1]


@pytest.mark.parametrize('reduce_zero_label', [True, False])
def test_label_maps(tmp_path: Path, reduce_zero_label: bool) -> None:
    out = draw_label_maps(
        write_maps(tmp_path),
        ('x', 'y', 'z'),
        tmp_path / 'grid.png',
        reduce_zero_label=reduce_zero_label,
        columns=1,
        tile=90,
    )
    first = 0 if reduce_zero_label else 1
    # the left half of the second image and the right half of the third; and the other way round
    assert columns_of_color(out, blended(first)) == pytest.approx((2.5 / 6 + 5.5 / 6) / 2, abs=0.02)
    assert columns_of_color(out, blended(first + 1)) == pytest.approx((3.5 / 6 + 4.5 / 6) / 2, abs=0.02)
    with pytest.raises(ValueError, match='no image to draw'):
        draw_label_maps([], ('x',), tmp_path / 'x.png')
    with pytest.raises(ValueError, match='number is 0'):
        draw_label_maps([], ('x',), tmp_path / 'x.png', number=0)


def test_segments(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 60, 3), 100, np.uint8)).save(tmp_path / 'a.jpg', quality=100)
    ids = np.repeat([[0, 700]], 30, axis=1).repeat(40, axis=0)
    for folder, pixels in (('true', ids), ('predicted', np.where(ids == 0, 255, 1001))):
        (tmp_path / folder).mkdir()
        Image.fromarray(id2rgb(pixels)).save(tmp_path / folder / 'a.png')
    content = {
        'images': [{'id': 1, 'file_name': 'a.jpg'}],
        'annotations': [
            {'image_id': 1, 'file_name': 'a.png', 'segments_info': [{'id': 700, 'category_id': 9}]},
        ],
        'categories': [{'id': 5, 'name': 'x'}, {'id': 9, 'name': 'y'}],
    }
    (tmp_path / 'panoptic.json').write_text(json.dumps(content))
    folders = (tmp_path, tmp_path / 'true', tmp_path / 'predicted')
    out = draw_segments(tmp_path / 'panoptic.json', *folders, tmp_path / 'grid.png', tile=90)
    assert columns_of_color(out, blended(1)) == pytest.approx((3.5 / 6 + 5.5 / 6) / 2, abs=0.02)
    assert columns_of_color(out, np.full(3, 100)) < 0.6  # no class in the left halves, and the whole image


def test_colors_differ_and_texts_on_them_are_legible() -> None:
    colors = {class_color(i) for i in range(80)}
    assert len(colors) == 80
    assert text_color((1, 1, 0.2)) == 'black'
    assert text_color((0.1, 0.1, 0.6)) == 'white'
    with pytest.raises(ValueError, match='0 and up'):
        class_color(-1)


def test_wrong_files_are_reported(data: dict, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no annotation file at'):
        read({**data, 'ann_file': tmp_path / 'no.json'})
    with pytest.raises(FileNotFoundError, match='no file of results at'):
        read({**data, 'results': tmp_path / 'no.json'})
    with pytest.raises(FileNotFoundError, match='no image at'):
        read({**data, 'img_dir': tmp_path / 'elsewhere'})
    with pytest.raises(ValueError, match='not a list of COCO detections'):
        read({**data, 'results': data['ann_file']})
    with pytest.raises(ValueError, match='not a COCO file'):
        read({**data, 'ann_file': data['results']})
    broken = tmp_path / 'broken.json'
    broken.write_text('{"images": [')
    with pytest.raises(ValueError, match='is not JSON'):
        read({**data, 'ann_file': broken})


def test_results_of_another_dataset_are_reported(data: dict) -> None:
    data['results'] = [{'image_id': 999, 'category_id': 7, 'bbox': [0, 0, 1, 1], 'score': 1.0}]
    with pytest.raises(ValueError, match='belong to another dataset'):
        read(data)


@pytest.mark.parametrize('settings', [{'number': 0}, {'score_threshold': 2}])
def test_wrong_numbers_are_reported(data: dict, settings: dict) -> None:
    with pytest.raises(ValueError, match='allowed'):
        read(data, **settings)


def test_wrong_layout_is_reported(data: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='columns is 0'):
        draw_predictions(**data, out_file=tmp_path / 'x.png', columns=0)
