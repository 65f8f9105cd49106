"""The command ``mmitpn predict``, with the detector that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmitpn.__main__ import main
from mmitpn.apis.data_sources import VideoFacts
from mmitpn.apis.results import Result
from mmitpn.commands.predict import CocoWriter, DrawingWriter

pytest.importorskip('mmdet')
pytest.importorskip('supervision')


def draw_circle(x: int) -> np.ndarray:
    """RGB, 128 x 128, one circle."""
    image = np.full((128, 128, 3), 90, np.uint8)
    return cv2.circle(image, (x, 64), 30, (200, 40, 40), -1)


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """Two images of one name in two folders, and a video."""
    folder = tmp_path_factory.mktemp('source')
    for name, x in (('one', 40), ('two', 90)):
        (folder / name).mkdir()
        Image.fromarray(draw_circle(x)).save(folder / name / 'a.png')
    video = cv2.VideoWriter(str(folder / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (128, 128))
    for index in range(6):
        video.write(draw_circle(40 + 8 * index)[..., ::-1])
    video.release()
    return folder


def predict(*arguments: object) -> int:
    return main(['predict', '--model', 'nano-shapes', '--device', 'cpu', *map(str, arguments)])


def test_images_of_one_name_and_a_table(source, tmp_path, capsys):
    (tmp_path / 'other.txt').write_text('kept')
    assert predict(f'{source}/**/*.png', '--out', tmp_path, '--json', '--batch', 2, '--score', 0.5) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'a_2.png', 'other.txt', 'predictions.json']
    for name, x in (('a.png', 40), ('a_2.png', 90)):
        drawn = np.asarray(Image.open(tmp_path / name)).astype(int)
        changed = np.abs(drawn - draw_circle(x)).sum(axis=2) > 30
        columns = np.flatnonzero(changed[60:70].any(axis=0))  # the left and right edges of the box
        assert columns.min() == pytest.approx(x - 31, abs=5)
        assert columns.max() == pytest.approx(x + 31, abs=5)
    coco = COCO(str(tmp_path / 'predictions.json'))
    assert [Path(one['file_name']).parent.name for one in coco.imgs.values()] == ['one', 'two']
    (circle,) = coco.getCatIds(catNms=['circle'])
    for image, x in ((1, 40), (2, 90)):
        (found,) = coco.loadAnns(coco.getAnnIds(imgIds=[image], catIds=[circle]))
        np.testing.assert_allclose(found['bbox'], [x - 30, 34, 60, 60], atol=5)
    printed = capsys.readouterr().out
    assert '2 images' in printed
    row = next(line for line in printed.splitlines() if 'circle' in line)
    assert row.split()[3::2][:2] == ['2', '2']
    assert f'2 drawings in {tmp_path}' in printed.replace('\n', ' ')


def test_a_video_gives_a_video(source, tmp_path):
    assert predict(source / 'clip.mp4', '--out', tmp_path, '--json') == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['clip.mp4', 'predictions.json']
    video = cv2.VideoCapture(str(tmp_path / 'clip.mp4'))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (6, 10)
    frame = video.read()[1][..., ::-1].astype(int)
    assert (np.abs(frame - draw_circle(40)).sum(axis=2) > 60).mean() > 0.02  # a box and a label
    content = json.loads((tmp_path / 'predictions.json').read_text())
    assert [one['frame'] for one in content['images']] == list(range(6))


def test_a_broken_image_is_named_in_the_exit_status(source, tmp_path, capsys):
    folder = tmp_path / 'in'
    folder.mkdir()
    (folder / 'a.png').write_bytes((source / 'one/a.png').read_bytes())
    (folder / 'b.png').write_bytes(b'broken')
    assert predict(folder, '--out', tmp_path / 'out') == 1
    assert 'b.png cannot be decoded as an image' in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a.png']


@pytest.mark.parametrize('save_video', [False, True])
def test_frames_of_a_camera(save_video, tmp_path):
    """A camera does not end by itself: its frames are images, or a video if that is asked for."""
    camera = VideoFacts(0, 64, 48, 0.0, None)
    values = {'boxes': np.zeros((0, 4), np.float32), 'scores': np.zeros(0), 'labels': np.zeros(0, int)}
    writer = DrawingWriter(tmp_path, save_streams=save_video)
    for frame in range(3):
        image = np.full((48, 64, 3), 80 * frame, np.uint8)
        writer.write(Result(image, 'camera0', ('a',), values, frame=frame, video=camera))
    writer.close()
    images = ['camera0_000000.jpg', 'camera0_000001.jpg', 'camera0_000002.jpg']
    assert sorted(path.name for path in tmp_path.iterdir()) == (['camera0.mp4'] if save_video else images)


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['gone.jpg'], "no file or folder 'gone.jpg'"),
        (['SOURCE', '--score', '7'], 'score is 7.0; give a number from 0 to 1'),
        (['SOURCE', '--device', 'tpu'], "device 'tpu' cannot be used"),
        (['SOURCE', '--weights', 'gone.pth'], 'gone.pth'),
        (
            ['SOURCE', '--weights', 'BACKBONE'],
            'of the 246 weights of the model; the others are missing or have another shape, in decoder',
        ),
        (['SOURCE', '--out', 'FILE'], 'is a file; give a folder'),
    ],
)
def test_mistakes_are_one_line(arguments, text, source, tmp_path, capsys):
    from mmitpn.utils import config_folder

    (tmp_path / 'file').write_text('')
    known = {
        'SOURCE': source / 'one',
        'BACKBONE': config_folder() / 'quickstart/fast-itpn-nano_shapes.pth',
        'FILE': tmp_path / 'file',
    }
    given = [known.get(one, one) for one in arguments]
    assert predict('--out', tmp_path / 'out', *given) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert text in error[-1]
    assert error[-1].startswith('error: ')
    assert not (tmp_path / 'out').exists()


def test_masks_in_the_json_file(tmp_path):
    """Masks and their areas are read back by pycocotools; the file has no name until it is complete."""
    mask = np.zeros((2, 20, 30), bool)
    mask[0, 5:10, 5:15] = mask[1, 0:2, 0:2] = True
    boxes = np.array([[5, 5, 15, 10], [0, 0, 2, 2]], np.float32)
    values = {'boxes': boxes, 'scores': np.array([0.9, 0.8]), 'labels': np.array([1, 0]), 'masks': mask}
    path = tmp_path / 'predictions.json'
    writer = CocoWriter(path, ('a', 'b'))
    for name in ('x.png', 'y.png'):
        writer.write(Result(np.zeros((20, 30, 3), np.uint8), name, ('a', 'b'), values))
    assert not path.exists()
    writer.close()
    coco = COCO(str(path))
    assert [one['file_name'] for one in coco.imgs.values()] == ['x.png', 'y.png']
    found = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert [(one['category_id'], one['area']) for one in found] == [(2, 50), (1, 4)]
    np.testing.assert_array_equal(coco.annToMask(found[0]).astype(bool), mask[0])
    assert coco.loadRes(list(coco.anns.values())).getAnnIds() == [1, 2, 3, 4]
