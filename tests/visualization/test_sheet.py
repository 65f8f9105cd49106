"""The sheet of predictions next to the ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmitpn.visualization import draw_predictions
from mmitpn.visualization.coco_sheet_data import read_sheet_images
from mmitpn.visualization.palette import class_colour, text_colour
from mmitpn.visualization.sheet import _place_label


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


def read(data: dict, **settings: float) -> tuple[list, list[str]]:
    return read_sheet_images(**data, **{'number': 5, 'score_threshold': 0.5, **settings})


def test_collects_ground_truth_and_predictions(data: dict) -> None:
    sheet_images, names = read(data)
    assert names == ['cat', 'dog']
    assert [len(sheet_image.ground_truth) for sheet_image in sheet_images] == [1, 0, 1, 1, 1]
    assert sheet_images[2].ground_truth[0].crowd
    assert [thing.score for thing in sheet_images[0].found] == [0.9, 0.6]
    assert sheet_images[0].found[0].category == 1


def test_takes_images_evenly(data: dict) -> None:
    sheet_images, _ = read(data, number=2)
    assert [sheet_image.path.name for sheet_image in sheet_images] == ['0.png', '2.png']
    assert len(read(data, number=50)[0]) == 5


@pytest.mark.parametrize(('number', 'columns'), [(5, 2), (1, 2), (4, 3)])
def test_draws(data: dict, tmp_path: Path, number: int, columns: int) -> None:
    out = draw_predictions(**data, out_file=tmp_path / 'new' / 'sheet.png', number=number, columns=columns, tile=100)
    with Image.open(out) as image:
        assert image.format == 'PNG'
        width, height = image.size
    assert width == min(columns, number) * (2 * 100 + 8 + 18) + 18
    assert 150 < height < 700
    assert_classes(out, tile=100, columns=min(columns, number), ground_truth={0}, found={1})


def assert_classes(path: Path, *, tile: int, columns: int, ground_truth: set[int], found: set[int]) -> None:
    """Of which classes boxes are drawn, by their colors: on the left of each pair, and on the right."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert('RGB')).astype(int)[:-60]  # without the legend
    halves = ([], [])
    for column in range(columns):
        left = 18 + column * (2 * tile + 8 + 18)
        halves[0].append(pixels[:, left : left + tile])
        halves[1].append(pixels[:, left + tile + 8 : left + tile + 8 + tile])
    for half, expected in zip(halves, (ground_truth, found), strict=True):
        drawn = np.concatenate([part.reshape(-1, 3) for part in half])
        for category in (0, 1):
            same = (np.abs(drawn - np.asarray(class_colour(category)) * 255).max(axis=1) < 4).sum()
            assert same > 50 if category in expected else same == 0


def test_no_predictions_at_all_still_draw(data: dict, tmp_path: Path) -> None:
    data['results'] = []
    out = draw_predictions(**data, out_file=tmp_path / 'sheet.png', tile=64)
    assert_classes(out, tile=64, columns=2, ground_truth={0}, found=set())


def test_labels_never_overlap() -> None:
    taken: list[tuple] = []
    places = [_place_label((10, 10, 20, 20), 40, (100, 100), taken) for _ in range(20)]
    drawn = [place for place in places if place is not None]
    assert 1 < len(drawn) < 20
    for i, (x, y, w, h) in enumerate(taken):
        assert x >= 0
        assert y >= 0
        assert x + w <= 100
        assert y + h <= 100
        assert all(x + w <= a or x >= a + c or y + h <= b or y >= b + d for a, b, c, d in taken[i + 1 :])


def test_colours_stay_apart_and_are_read() -> None:
    colours = {class_colour(i) for i in range(80)}
    assert len(colours) == 80
    assert text_colour((1, 1, 0.2)) == 'black'
    assert text_colour((0.1, 0.1, 0.6)) == 'white'
    with pytest.raises(ValueError, match='0 and up'):
        class_colour(-1)


def test_wrong_files_are_told(data: dict, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no annotation file at'):
        read({**data, 'ann_file': tmp_path / 'no.json'})
    with pytest.raises(FileNotFoundError, match='no file of results at'):
        read({**data, 'results': tmp_path / 'no.json'})
    with pytest.raises(FileNotFoundError, match='no image at'):
        read({**data, 'img_dir': tmp_path / 'elsewhere'})
    with pytest.raises(ValueError, match='no list of COCO detections'):
        read({**data, 'results': data['ann_file']})
    with pytest.raises(ValueError, match='no COCO file'):
        read({**data, 'ann_file': data['results']})
    broken = tmp_path / 'broken.json'
    broken.write_text('{"images": [')
    with pytest.raises(ValueError, match='is not JSON'):
        read({**data, 'ann_file': broken})


def test_results_of_another_dataset_are_told(data: dict) -> None:
    data['results'] = [{'image_id': 999, 'category_id': 7, 'bbox': [0, 0, 1, 1], 'score': 1.0}]
    with pytest.raises(ValueError, match='belong to another dataset'):
        read(data)


@pytest.mark.parametrize('settings', [{'number': 0}, {'score_threshold': 2}])
def test_wrong_numbers_are_told(data: dict, settings: dict) -> None:
    with pytest.raises(ValueError, match='allowed'):
        read(data, **settings)


def test_wrong_layout_is_told(data: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='columns is 0'):
        draw_predictions(**data, out_file=tmp_path / 'x.png', columns=0)
