"""Sources of predictions: what is recognized, in which order, and what is reported."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mmitpn.apis.data_sources import DataSource

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def write_video(path: Path, codec: str, *, frames: int) -> None:
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 5, (30, 20))
    for index in range(frames):
        video.write(np.full((20, 30, 3), 60 * index % 240, np.uint8))
    video.release()


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Images, a video, other files and a subfolder."""
    folder = tmp_path_factory.mktemp('source')
    (folder / 'sub').mkdir()
    for name in ('b.png', 'a.JPG', 'sub/c.png'):
        Image.fromarray(PIXELS).save(folder / name)
    write_video(folder / 'clip.avi', 'MJPG', frames=4)
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture
def server(folder) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def names(source: object) -> list[str]:
    return [item.name for item in DataSource(source)]


def test_a_folder_in_the_order_of_names(folder):
    assert names(folder) == ['a.JPG', 'b.png', *['clip.avi'] * 4]
    assert DataSource(folder).total == 6


def test_a_glob_takes_subfolders_where_it_says_so(folder):
    assert names(f'{folder}/*.png') == ['b.png']
    assert names(f'{folder}/**/*.png') == ['b.png', 'c.png']


def test_frames_of_a_video(folder):
    items = list(DataSource(folder / 'clip.avi'))
    assert [item.frame for item in items] == [0, 1, 2, 3]
    assert [round(float(item.image.mean()), -1) for item in items] == [0, 60, 120, 180]
    facts = items[0].video
    assert (facts.width, facts.height, facts.fps, facts.frames) == (30, 20, 5.0, 4)


def test_an_image_from_the_web(server):
    (item,) = DataSource(f'{server}/b.png?size=1')
    np.testing.assert_array_equal(item.image, PIXELS)
    assert item.name == 'b.png'
    assert [item.frame for item in DataSource(f'{server}/clip.avi')] == [0, 1, 2, 3]
    with pytest.raises(FileNotFoundError, match='cannot be downloaded'):
        next(iter(DataSource(f'{server}/gone.png')))
    with pytest.raises(ValueError, match='is not an image'):
        next(iter(DataSource(f'{server}/notes.txt')))


def test_arrays_of_other_channels():
    gray, rgba, one = DataSource([PIXELS[..., 0], np.dstack([PIXELS, PIXELS[..., :1]]), PIXELS[..., :1]])
    np.testing.assert_array_equal(gray.image, np.repeat(PIXELS[..., :1], 3, axis=2))
    np.testing.assert_array_equal(rgba.image, PIXELS)
    np.testing.assert_array_equal(one.image, gray.image)
    assert [item.name for item in (gray, rgba, one)] == ['image0', 'image1', 'image2']


def test_a_broken_video_among_others_is_an_item_with_its_error(folder, tmp_path):
    broken, cut = tmp_path / 'broken.mp4', tmp_path / 'cut.mkv'
    broken.write_bytes(b'nothing')
    write_video(cut, 'mp4v', frames=40)
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    items = list(DataSource([broken, folder / 'b.png']))
    assert 'cannot be decoded as a video' in str(items[0].error)
    assert items[1].name == 'b.png'
    with pytest.raises(ValueError, match=r'broken\.mp4 cannot be decoded as a video'):
        DataSource(broken)
    *frames, last = DataSource(cut)
    assert str(last.error).endswith(f'only {len(frames)} of its 40 frames can be decoded; it is cut off')


@pytest.mark.parametrize(
    ('source', 'error', 'text'),
    [
        ('gone.jpg', FileNotFoundError, "no file or folder 'gone.jpg'"),
        ('*.gone', FileNotFoundError, 'matches no image or video'),
        ('ftp://a/b.jpg', ValueError, 'sources are read from http, https'),
        (np.zeros((3, 4, 5, 6), np.uint8), ValueError, r'the shape \(3, 4, 5, 6\)'),
        (np.zeros((3, 20, 30), np.uint8), ValueError, r'the shape \(3, 20, 30\)'),
        (np.zeros((0, 20, 3), np.uint8), ValueError, r'the shape \(0, 20, 3\)'),
        (np.zeros((20, 30, 3)), TypeError, 'holds float64; give RGB values from 0 to 255'),
        (torch.zeros(3, 20, 30), TypeError, 'the source is a Tensor; .*turn a tensor into an RGB array'),
        (None, TypeError, 'the source is a NoneType'),
        (True, TypeError, 'the source is True'),
        (-1, ValueError, 'cameras are numbered from 0'),
        ([], ValueError, 'the list of sources is empty'),
        (99, ValueError, 'camera 99 cannot be opened'),
        ('rtsp://127.0.0.1:9/live', ValueError, 'live cannot be opened as a video; check the address'),
    ],
)
def test_mistakes_are_reported_at_once(source, error, text):
    with pytest.raises(error, match=text):
        DataSource(source)


def test_mistakes_in_a_folder(folder, tmp_path):
    with pytest.raises(ValueError, match=r"the ending '\.txt' is none of"):
        DataSource(folder / 'notes.txt')
    with pytest.raises(FileNotFoundError, match='has no image or video'):
        DataSource(tmp_path)
    (tmp_path / 'inner').mkdir()
    with pytest.raises(FileNotFoundError, match=r'subfolders are not searched: write .*\*\*/\*\.jpg'):
        DataSource(tmp_path)
