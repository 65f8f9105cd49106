"""demo/serve.py: what it refuses, what it answers, and 1,000 requests to the real server."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmitpn.apis.predictor import Predictor
from mmitpn.apis.results import Result
from mmitpn.datasets.shapes.generate import image_of, jpeg_of

pytest.importorskip('litserve', reason='litserve is not installed: pip install litserve')

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'demo' / 'serve.py'
PIXELS, BYTES = 1_000_000, 2_000_000  # limits of the tests


@pytest.fixture(scope='module')
def serve() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location('demo_serve', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encode(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def large_png(side: int) -> bytes:
    """The start of a PNG file of ``side`` x ``side`` pixels, 57 bytes long."""
    header = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    chunks = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
    return b'\x89PNG\r\n\x1a\n' + chunks + struct.pack('>I', 0) + b'IEND' + struct.pack('>I', zlib.crc32(b'IEND'))


# --- one upload ---


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP'])
def test_decodes_as_the_predictor_reads_files(serve: ModuleType, tmp_path: Path, kind: str) -> None:
    content = encode(image_of(1, 'val', 0, (60, 80)).image, kind)
    path = tmp_path / f'image.{kind.lower()}'
    path.write_bytes(content)
    mmcv = pytest.importorskip('mmcv')

    decoded = serve.decode(content, max_pixels=PIXELS)

    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, mmcv.imread(str(path))[..., ::-1])


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ('content', 'status', 'message'),
    [
        (b'', 400, 'no JPEG, PNG, WEBP, BMP file'),
        (b'GIF89a' + bytes(40), 400, 'no JPEG, PNG, WEBP, BMP file'),
        (os.fspath(ROOT / 'demo/shapes_1.jpg').encode(), 400, 'no JPEG, PNG, WEBP, BMP file'),
        ((ROOT / 'demo/shapes_1.jpg').read_bytes()[:4000], 400, 'damaged or cut off'),
        (encode(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8), 'PNG')[:3000], 400, 'damaged'),
        (large_png(1001), 413, 'more than 1,000,000 pixels'),
        (large_png(60_000), 413, 'more than 1,000,000 pixels'),  # 10.8 GB if it were decoded
    ],
    ids=['empty', 'gif', 'path', 'cut JPEG', 'cut PNG', 'too large', 'bomb'],
)
def test_refuses(serve: ModuleType, content: bytes, status: int, message: str) -> None:
    with pytest.raises(serve.RefusedError) as caught:
        serve.decode(content, max_pixels=PIXELS)
    assert caught.value.args[0] == status
    assert message in caught.value.args[1]


def test_executes_nothing(serve: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(serve.RefusedError):
        serve.decode(pickle.dumps(Malicious(tmp_path / 'touched')), max_pixels=PIXELS)
    assert not (tmp_path / 'touched').exists()


# --- a batch ---


def result_of(image: np.ndarray) -> Result:
    values = {
        'boxes': np.array([[1, 2, 11, 22]], np.float32) * image.shape[0],
        'scores': np.array([0.5], np.float32),
        'labels': np.array([1]),
    }
    return Result(image, 'image', ('circle', 'star'), values)


def predict_some(images: list[np.ndarray], *, score: float, batch: int) -> Iterator[Result]:
    """In place of a predictor: images of height 3 fail."""
    assert score == 0.25
    assert batch == len(images)
    if any(one.shape[0] == 3 for one in images):
        raise RuntimeError('too small')
    return (result_of(one) for one in images)


def test_a_refused_image_does_not_fail_the_others(serve: ModuleType) -> None:
    api = serve.PredictorAPI('model', None, score=0.25, batch=8, max_pixels=100)
    api.predictor = SimpleNamespace(predict=predict_some)
    uploads = [encode(np.zeros((height, 5, 3), np.uint8), 'PNG') for height in (4, 3, 40, 6)] + [b'text']

    inputs = api.batch([api.decode_request(one) for one in uploads])
    answers = [api.encode_response(one) for one in api.predict(inputs)]

    assert [one.status_code for one in answers] == [200, 400, 413, 200, 400]
    bodies = [json.loads(one.body) for one in answers]
    assert [one['height'] for one in (bodies[0], bodies[3])] == [4, 6]
    assert bodies[1] == {'detail': 'no prediction for an image of (3, 5) pixels (too small)'}
    expected = {'image_id': 0, 'category_id': 2, 'score': 0.5, 'bbox': [4.0, 8.0, 40.0, 80.0], 'name': 'star'}
    assert bodies[0] == {'width': 5, 'height': 4, 'predictions': [expected]}


# --- the queue ---


def post(app: Any, **headers: str) -> list[dict[str, Any]]:
    """What an ASGI app sends for a POST request."""
    return asyncio.run(post_later(app, **headers))


async def post_later(app: Any, **headers: str) -> list[dict[str, Any]]:
    sent = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {'type': 'http.request', 'body': b'1234'}

    pairs = [(name.replace('_', '-').encode(), value.encode()) for name, value in headers.items()]
    await app({'type': 'http', 'method': 'POST', 'headers': pairs}, receive, send)
    return sent


def test_a_full_queue_refuses_until_one_is_answered(serve: ModuleType) -> None:
    async def run() -> list[int]:
        release = asyncio.Event()
        seen = []

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            seen.append(dict(scope['headers'])[b'content-type'])
            await release.wait()
            await send({'status': 200})

        queue = serve.BoundedQueue(app, length=2)
        sizes = {'content_length': '4', 'content_type': 'application/json'}
        waiting = [asyncio.create_task(post_later(queue, **sizes)) for _ in range(2)]
        await asyncio.sleep(0)
        statuses = [(await post_later(queue, **sizes))[0]['status']]
        release.set()
        statuses += [one[0]['status'] for one in await asyncio.gather(*waiting)]
        statuses.append((await post_later(queue, **sizes))[0]['status'])
        assert set(seen) == {b'application/octet-stream'}
        return statuses

    assert asyncio.run(run()) == [503, 200, 200, 200]


def test_a_failed_request_frees_its_slot(serve: ModuleType) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise ConnectionError

    queue = serve.BoundedQueue(app, length=1)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            post(queue, content_length='4')


@pytest.mark.parametrize('headers', [{'content_length': '0'}, {}], ids=['length 0', 'no length'])
def test_an_empty_body(serve: ModuleType, headers: dict[str, str]) -> None:
    start, body = post(serve.BoundedQueue(None, length=1), **headers)
    assert start['status'] == 400
    assert json.loads(body['body']) == {'detail': 'the body is empty; send an image file'}


# --- the server ---


class Server:
    """``demo/serve.py nano-shapes`` on a free port of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, str(SCRIPT), 'nano-shapes', '--port', str(self.port)]
        command += ['--max-bytes', str(BYTES), '--max-pixels', str(PIXELS)]
        self.log = folder / 'server.log'
        with self.log.open('wb') as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=300)
        try:
            connection.request(method, path, body, encode_chunked=not isinstance(body, (bytes, type(None))))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def predict(self, content: Any) -> tuple[int, dict[str, Any]]:
        status, body = self.request('POST', '/predict', content)
        return status, json.loads(body)

    def wait(self) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.request('GET', '/health')[0] == 200:
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f'the server does not start:\n{self.log.read_text()}')


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that is ready; its processes end with the test."""
    psutil = pytest.importorskip('psutil')
    server = Server(tmp_path)
    tree = []
    try:
        server.wait()
        tree = psutil.Process(server.process.pid).children(recursive=True)
        yield server
    finally:
        server.process.terminate()
        try:
            server.process.wait(60)
        except subprocess.TimeoutExpired:
            server.process.kill()
        for one in tree:
            if one.is_running():
                one.kill()


def resident(processes: list[Any]) -> int:
    """MiB of the processes together."""
    return sum(one.memory_info().rss for one in processes) >> 20


def assert_equal(answer: dict[str, Any], expected: Result) -> None:
    assert (answer['height'], answer['width']) == expected.image.shape[:2]
    found = answer['predictions']
    assert [one['name'] for one in found] == expected.names
    for one, other in zip(found, expected.to_coco(), strict=True):
        assert one['category_id'] == other['category_id']
        assert one['score'] == pytest.approx(other['score'], abs=1e-4)
        assert one['bbox'] == pytest.approx(other['bbox'], abs=0.01)


@pytest.mark.slow
def test_a_thousand_requests(server: Server, tmp_path: Path) -> None:
    psutil = pytest.importorskip('psutil')
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    paths = []
    for index in range(40):
        image = image_of(5, 'val', index, (192, 256)).image
        paths.append(tmp_path / f'{index}.{"png" if index % 4 == 0 else "jpg"}')
        paths[-1].write_bytes(encode(image, 'PNG') if index % 4 == 0 else jpeg_of(image))
    uploads = [one.read_bytes() for one in paths]
    expected = list(Predictor('nano-shapes', device='cpu').predict(paths))
    assert sum(len(one) for one in expected) > 100

    def send(index: int) -> tuple[int, dict[str, Any]]:
        return server.predict(uploads[index % 40])

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(send, range(200)))
        early = resident(processes)
        answers += list(threads.map(send, range(200, 1000)))
        late = resident(processes)
        print(f'{early} MiB after 200 requests, {late} MiB after 1,000')

        assert len(answers) == 1000
        for index, (status, answer) in enumerate(answers):
            assert status == 200, answer
            assert_equal(answer, expected[index % 40])
        assert late < early + 64

        # Refused uploads, among others that are answered
        refused = {
            b'no image': 400,
            uploads[1][:3000]: 400,
            large_png(40_000): 413,
            bytes(BYTES + 1): 413,
            b'': 400,
        }
        mixed = [content for bad in refused for content in (bad, *uploads[:4])] * 2
        for content, (status, answer) in zip(mixed, threads.map(server.predict, mixed), strict=True):
            if content in refused:
                assert status == refused[content], answer
                assert set(answer) == {'detail'}
            else:
                assert status == 200
                assert_equal(answer, expected[uploads.index(content)])
        endless = (bytes(1 << 16) for _ in range(100))  # without a length
        assert server.predict(endless)[0] == 413
        assert resident(processes) < early + 64

        # SIGTERM: what was accepted is answered, no process stays
        last = [threads.submit(server.predict, one) for one in uploads[:8]]
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        for answer, result in zip(last, expected[:8], strict=True):
            assert answer.result()[0] == 200
            assert_equal(answer.result()[1], result)
    assert server.process.wait(60) == 0, server.log.read_text()
    assert not psutil.wait_procs(processes[1:], timeout=10)[1]
    with pytest.raises(ConnectionRefusedError):
        server.request('GET', '/health')
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*(one.name for one in paths), 'server.log'])
