"""demo/app.py: predictions with and without token reduction, what it refuses, and the page in a real browser."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

import mmitpn

gr = pytest.importorskip('gradio', reason="gradio is not installed: pip install '.[demo]'")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'demo' / 'app.py'
EXAMPLE = ROOT / 'demo' / 'shapes_1.jpg'
PIXELS = 1_000_000
BROWSERS = ('chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome')
BROWSER = os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, BROWSERS)), None)
SEGMENTOR = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)), backbone=dict({backbone}),
    decode_head=dict(
        type='FCNHead', in_channels=64, in_index=-1, channels=8, num_convs=1, num_classes=2, norm_cfg=dict(type='BN')),
    test_cfg=dict(mode='whole'))
test_dataloader = dict(dataset=dict(type='BaseSegDataset', metainfo=dict(classes=('a', 'b')), pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackSegInputs')]))
"""
RESNET = "type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BN')"
LEARNED = (
    "type='mmitpn.FastITPN', arch=dict(depths=(1, 1, 3), embed_dim=64, num_heads=2), img_size=64,"
    ' token_gathering=dict(window_size=2, learned=True)'
)


@pytest.fixture(scope='module')
def app() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location('demo_app', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.RUNS = 2
    return module


@pytest.fixture(scope='module')
def shapes(app: ModuleType) -> Any:
    """nano-shapes."""
    pytest.importorskip('mmdet')
    return app.DemoModels(['nano-shapes'], device='cpu', max_pixels=PIXELS)


@pytest.fixture(scope='module')
def expected(shapes: Any) -> dict[bool, mmitpn.Result]:
    """Predictions of the first example, without and with token reduction."""
    model = mmitpn.Predictor('nano-shapes', device='cpu')
    found = {False: next(model.predict(Image.open(EXAMPLE)))}
    model.model.backbone.set_token_reduction(token_gathering={}, token_migration={})
    found[True] = next(model.predict(Image.open(EXAMPLE)))
    return found


def segmentor(folder: Path, backbone: str) -> str:
    """A segmentor with random weights, as CONFIG=CHECKPOINT."""
    pytest.importorskip('mmseg')
    config, weights = folder / 'segmentor.py', folder / 'segmentor.pth'
    config.write_text(SEGMENTOR.format(backbone=backbone))
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(config).model)
    for name, parameter in model.named_parameters():
        if name.endswith('gathering_offset'):
            torch.nn.init.normal_(parameter, std=3.0)
    torch.save({'state_dict': model.state_dict()}, weights)
    return f'{config}={weights}'


# --- predictions ---


@pytest.mark.parametrize('reduce', [False, True])
def test_draws_what_the_predictor_finds(shapes: Any, expected: dict[bool, mmitpn.Result], reduce: bool) -> None:
    assert not np.array_equal(expected[False].boxes, expected[True].boxes)

    drawing, table = shapes.predict(str(EXAMPLE), 'nano-shapes', 0.3, reduce)

    assert np.array_equal(drawing, expected[reduce].draw())
    row = r'^\| (all|reduced)( \(drawn\))? \| ([\d.]+) \(([\d.]+) - ([\d.]+)\) \| (.+) \|$'
    rows = re.findall(row, table, re.MULTILINE)
    assert [row[0] for row in rows] == ['all', 'reduced']
    assert [bool(row[1]) for row in rows] == [not reduce, reduce]
    assert all(0.5 < float(low) <= float(middle) <= float(high) for _, _, middle, low, high, _ in rows)
    assert [row[5] for row in rows] == [expected[False].summary, expected[True].summary]
    assert 'milliseconds of this image on this machine (cpu)' in table
    assert 'median (range) of 2 runs after an untimed one' in table


def test_requests_at_once_do_not_mix_their_settings(shapes: Any, expected: dict[bool, mmitpn.Result]) -> None:
    with ThreadPoolExecutor(4) as threads:
        asked = [True, False, True, False]
        answers = list(threads.map(lambda one: shapes.predict(str(EXAMPLE), 'nano-shapes', 0.3, one)[0], asked))
    for one, drawing in zip(asked, answers, strict=True):
        assert np.array_equal(drawing, expected[one].draw())


def test_a_slow_model_is_timed_once(shapes: Any, app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, 'SECONDS', 0.0)
    assert 'of 1 run after an untimed one' in shapes.predict(str(EXAMPLE), 'nano-shapes', 0.3, False)[1]


def test_a_backbone_without_token_reduction(app: ModuleType, tmp_path: Path) -> None:
    name = segmentor(tmp_path, RESNET)
    models = app.DemoModels([name], device='cpu')

    switch = models.select(name)

    assert not switch.interactive
    assert not switch.value
    assert 'is ResNet; only FastITPN reduces tokens' in switch.info
    drawing, table = models.predict(str(EXAMPLE), name, 0.3, False)
    assert drawing.shape == (*Image.open(EXAMPLE).size[::-1], 3)
    (row,) = re.findall(r'^\| - \| .+', table, re.MULTILINE)
    assert next(mmitpn.Predictor(*name.split('='), device='cpu').predict(str(EXAMPLE))).summary in row
    assert 'reduced' not in table
    with pytest.raises(gr.Error, match='only FastITPN reduces tokens; switch token reduction off'):
        models.predict(str(EXAMPLE), name, 0.3, True)


def test_what_was_learned_for_token_reduction_is_kept(app: ModuleType, tmp_path: Path) -> None:
    name = segmentor(tmp_path, LEARNED)
    config, _, weights = name.partition('=')
    models = app.DemoModels([name], device='cpu')
    trained = next(mmitpn.Predictor(config, weights, device='cpu').predict(Image.open(EXAMPLE))).draw()

    assert models.select(name).value  # as it was trained

    for reduce in (True, False, True):
        assert np.array_equal(models.predict(str(EXAMPLE), name, 0.3, reduce)[0], trained) == reduce


def test_a_model_that_cannot_be_loaded(app: ModuleType, expected: dict[bool, mmitpn.Result]) -> None:
    models = app.DemoModels(['nano-shapes', 'fast-itpn-b'], device='cpu')
    assert models.select('nano-shapes').interactive
    with pytest.raises(gr.Error, match='names pre-trained weights of a backbone, not a complete model'):
        models.select('fast-itpn-b')
    with pytest.raises(gr.Error, match="no model 'others'; allowed: nano-shapes, fast-itpn-b"):
        models.select('others')
    drawing, _ = models.predict(str(EXAMPLE), 'nano-shapes', 0.3, False)
    assert np.array_equal(drawing, expected[False].draw())


# --- what is refused ---


def large_png(side: int) -> bytes:
    """The start of a PNG file of ``side`` x ``side`` pixels."""
    header = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    chunks = struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))
    return b'\x89PNG\r\n\x1a\n' + chunks + struct.pack('>I', 0) + b'IEND' + struct.pack('>I', zlib.crc32(b'IEND'))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'there is no image: upload one'),
        (b'text', r'the file \(4 bytes\) is not an image; allowed: JPEG, PNG, WEBP, BMP; choose another one'),
        (EXAMPLE.read_bytes()[:4000], r'the JPEG file \(4,000 bytes\) is damaged; allowed: .*; save it again'),
        (large_png(1001), r'has 1001 x 1001 = 1,002,001 pixels; allowed: up to 1,000,000 \(--max-pixels\); make it'),
        (large_png(60_000), r'has more than [\d,]+ pixels; allowed: up to 1,000,000'),  # 10.8 GB if it were decoded
    ],
    ids=['none', 'text', 'cut off', 'too large', 'bomb'],
)
def test_a_bad_image(shapes: Any, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / 'upload'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(gr.Error, match=message) as caught:
        shapes.predict(content and str(path), 'nano-shapes', 0.3, False)
    assert not caught.value.print_exception  # no traceback in the log either


def test_an_upload_that_was_deleted(shapes: Any, tmp_path: Path) -> None:
    with pytest.raises(gr.Error, match='as all are after a day; upload it again'):
        shapes.predict(str(tmp_path / 'upload.jpg'), 'nano-shapes', 0.3, False)


def test_a_bad_score(shapes: Any) -> None:
    with pytest.raises(gr.Error, match='score is 2; give a number from 0 to 1'):
        shapes.predict(str(EXAMPLE), 'nano-shapes', 2, False)


# --- the command ---


@pytest.mark.parametrize(
    ('arguments', 'host', 'port', 'share'),
    [([], '127.0.0.1', 7860, False), (['--host', '::', '--port', '80', '--share'], '::', 80, True)],
    ids=['defaults', 'chosen'],
)
def test_where_it_listens(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: list[str], host: str, port: int, share: bool
) -> None:
    pytest.importorskip('mmdet')
    launched = []
    monkeypatch.setattr(gr.Blocks, 'launch', lambda _, **settings: launched.append(settings))
    monkeypatch.setattr(sys, 'argv', ['app.py', 'nano-shapes', *arguments])
    app.main()
    (given,) = launched
    assert (given['server_name'], given['server_port'], given['share']) == (host, port, share)


def test_a_mistake_ends_the_command(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip('mmdet')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (['nano-shape'], "did you mean 'nano-shapes'?"),
            (['nano-shapes', '--port', port], f'port in range: {port}-{port}'),
        ):
            monkeypatch.setattr(sys, 'argv', ['app.py', *arguments])
            with pytest.raises(SystemExit, match='2'):
                app.main()
            assert message in capsys.readouterr().err


# --- the page ---


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The page of nano-shapes on a free port."""
    pytest.importorskip('mmdet')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    log = tmp_path / 'app.log'
    command = [sys.executable, str(SCRIPT), 'nano-shapes', '--port', str(port), '--max-pixels', str(PIXELS)]
    with log.open('wb') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 180
        while 'Running on' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f'http://127.0.0.1:{port}'
        assert 'Traceback' not in log.read_text()
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=f'no browser: install one of {", ".join(BROWSERS)}, or set CHROMIUM')
def test_in_a_browser(address: str, expected: dict[bool, mmitpn.Result], tmp_path: Path) -> None:
    """No image and a damaged one, which give a message; then an example, of which the result is shown."""
    driver = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    damaged = tmp_path / 'damaged.jpg'
    damaged.write_bytes(b'not an image')
    with driver.sync_playwright() as control:
        browser = control.chromium.launch(executable_path=BROWSER, args=['--no-sandbox'])
        page = browser.new_page()
        elsewhere = []
        page.on('request', lambda request: None if request.url.startswith(address) else elsewhere.append(request.url))
        page.goto(address)
        run = page.get_by_role('button', name='Run', exact=True)
        run.click()
        page.get_by_text('there is no image: upload one').wait_for()
        page.locator('input[type=file]').first.set_input_files(damaged)
        page.locator('img[src*="damaged.jpg"]').wait_for(state='attached')
        run.click()
        page.get_by_text('the file (12 bytes) is not an image').wait_for()

        page.locator('img[src*="shapes_1.jpg"]').first.click()
        page.locator('img[src*="damaged.jpg"]').wait_for(state='detached')
        page.get_by_label('Token reduction').check()
        run.click()
        table = page.locator('table', has_text='ms')
        table.wait_for()
        assert re.search(r'reduced \(drawn\)\s+[\d.]+ \([\d.]+ - [\d.]+\)', table.inner_text())
        image = page.locator('img[src$=".png"]')
        image.wait_for()
        (tmp_path / 'drawing.png').write_bytes(page.request.get(image.get_attribute('src')).body())
        browser.close()
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'drawing.png').convert('RGB')), expected[True].draw())
    assert not elsewhere
