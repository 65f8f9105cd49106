"""demo/notebooks: clean files, in which every cell runs, on a CPU and without a network."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'demo/notebooks'
NAMES = ('own_data', 'predict', 'swap_backbone')
METADATA = {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
}
MOST_WORDS = 90  # of a text cell
ABSOLUTE = re.compile(r'(?<![\w.}])(?:/|~/)(?:home|root|tmp|Users|mnt|opt|srv|work|var|data)\b|\b[A-Z]:\\|file://')
# Settings in the cell tagged `parameters`, so that the test is short.
PARAMETERS = {'own_data': {'epochs': 2, 'num_train': 16, 'num_val': 4}}
# Cell -> what it must print or show.
EXPECTED = {
    'own_data': {
        'inspect': r'COCO, 2 classes: round, angular[\s\S]*\| train \| +16 \|',
        'check': r'images looked for and found +│ 16 [\s\S]*no error found',
        'train': r'num_classes: 5 -> 2[\s\S]*Iter\(train\) \[ ?4/4\].* loss: \d+\.\d+[\s\S]*Iter\(val\).*mAP: 0\.\d',
        'evaluate': r'box AP 0\.\d{3}, at IoU 0\.5 0\.\d{3}: best_coco_bbox_mAP_iter_\d+\.pth',
        'test': r'bbox_mAP_copypaste: 0\.\d+ 0\.\d+ .*[\s\S]*report: .*report\.html',
        'predict': r"\('round', 'angular'\)\nResult\(000000500001\.jpg, 135x178: ",
    },
    'predict': {
        'load': r'Predictor\(DINO, 5 classes, gives boxes, on cpu\)',
        'predict': r'Result\(shapes_1\.jpg, 195x185: 6 objects: 4 star, 1 square, 1 triangle\)',
        'numbers': r'^star +0\.8\d  \[ *72\.\d +23\.\d 121\.\d +67\.\d\]',
        'detections': r'6 objects, 5 detections after NMS',
        'coco': r"'image_id': 1,\s+'category_id': 4,\s+'score': 0\.8",
        'folder': r'(Result\(shapes_\d\.jpg, .* objects: .*\n){4}',
        'reduction': r'off +objects per image: \[6, 7, 5, 4\]\ngathering .*\nmigration .*\nboth +objects per image: \[',
        'speed': r'off +\d\.\d\d s, 1\.00x as fast as without\ngathering .*\nmigration ',
    },
    'swap_backbone': {
        'config': r"ResNet 50 \{'type': 'FPN'",
        'build': r'backbone +23\.8 M parameters\nneck +2\.6 M parameters\n',
        'loss': r'loss_rpn_cls +\d\.\d+[\s\S]*norm of the gradient of the first layer: \d\.\d+',
        'forward': r'\[\(1, 256, 64, 80\), .*\(1, 256, 4, 5\)\]\n\d+ boxes',
        'tool': r'wrote work_dirs/notebooks/fcn\.py[\s\S]*one training step \(loss \d\.\d+\) .* succeeded',
        'features': r'backbone  stride 16  \(1, 192, 13, 21\)[\s\S]*pyramid   stride 32  \(1, 128, 7, 11\)',
    },
}
IMAGES = {
    'own_data': ('curves', 'compare'),
    'predict': ('draw', 'detections', 'grid'),
    'swap_backbone': ('pca',),
}


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f'{name}.ipynb').read_text(encoding='utf-8'))


def text_of(cell: dict[str, Any]) -> str:
    """The source of a cell, which a file has as lines."""
    return ''.join(cell['source'])


def faults(notebook: dict[str, Any]) -> Iterator[str]:
    """What does not belong into a notebook that is committed."""
    if notebook['metadata'] != METADATA:
        yield f'metadata {notebook["metadata"]}'
    if (notebook['nbformat'], notebook['nbformat_minor']) != (4, 5):
        yield f'format {notebook["nbformat"]}.{notebook["nbformat_minor"]}'
    before = None
    for cell in notebook['cells']:
        ident, text = cell['id'], text_of(cell)
        if not re.fullmatch(r'[a-z]+(-[a-z]+)*', ident):
            yield f'{ident}: an id that is no word'
        if cell['metadata'] not in ({}, {'tags': ['parameters']}):
            yield f'{ident}: metadata {cell["metadata"]}'
        if cell.get('outputs') or cell.get('execution_count') is not None:
            yield f'{ident}: outputs'
        if text != text.strip() or re.search(r'[ \t]$|\t', text, flags=re.MULTILINE) or not text:
            yield f'{ident}: white space'
        if ABSOLUTE.search(text):
            yield f'{ident}: a path of a machine, {ABSOLUTE.search(text)[0]}'
        if cell['cell_type'] == 'code' and before != 'markdown':
            yield f'{ident}: no text above it'
        if cell['cell_type'] == 'markdown' and len(text.split()) > MOST_WORDS:
            yield f'{ident}: {len(text.split())} words'
        before = cell['cell_type']


def test_all_notebooks_are_tested() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_they_are_clean(name: str) -> None:
    nbformat = pytest.importorskip('nbformat', reason='nbformat is not installed: tools/install.sh --tests')
    notebook = read(name)
    nbformat.validate(notebook)
    assert list(faults(notebook)) == []
    written = (FOLDER / f'{name}.ipynb').read_text(encoding='utf-8')
    assert written == json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'  # as Jupyter writes it


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        ({'id': '9f3a1c'}, 'an id that is no word'),
        ({'outputs': [{'output_type': 'stream', 'name': 'stdout', 'text': ['1\n']}]}, 'outputs'),
        ({'execution_count': 3}, 'outputs'),
        ({'metadata': {'collapsed': True}}, 'metadata'),
        ({'source': ["folder = '/home/me/data'"]}, 'a path of a machine'),
        ({'source': ['x = 1\n', '\n']}, 'white space'),
    ],
)
def test_an_unclean_cell_is_found(change: dict[str, Any], fault: str) -> None:
    notebook = read('predict')
    cell = next(one for one in notebook['cells'] if one['cell_type'] == 'code')
    assert not list(faults(notebook))
    cell.update(change)
    (found,) = faults(notebook)
    assert fault in found


def test_they_begin_alike() -> None:
    """With a title, and with the cell that finds the root."""
    cells = {name: read(name)['cells'] for name in NAMES}
    assert all(text_of(found[0]).startswith('# ') for found in cells.values())
    assert len({tuple(text_of(one) for one in found[1:3]) for found in cells.values()}) == 1


@pytest.mark.parametrize('name', NAMES)
def test_their_links_lead_to_files(name: str) -> None:
    links = re.findall(r'\]\(([^)#]+)', '\n'.join(text_of(cell) for cell in read(name)['cells']))
    assert any(link.startswith('../../docs/') for link in links)
    assert [link for link in links if '://' not in link and not (FOLDER / link).is_file()] == []


# --- execution -------------------------------------------------------------------------------------------------------
def execute(name: str, folder: Path) -> dict[str, list[Any]]:
    """Run a notebook in a copy of demo/, from the folder of notebooks as Jupyter does; the outputs of each cell."""
    nbclient = pytest.importorskip('nbclient', reason='nbclient is not installed: tools/install.sh --tests')
    nbformat = pytest.importorskip('nbformat')
    pytest.importorskip('ipykernel', reason='ipykernel is not installed: tools/install.sh --tests')
    shutil.copytree(ROOT / 'demo', folder / 'demo')
    here = folder / 'demo/notebooks'
    notebook = nbformat.read(here / f'{name}.ipynb', as_version=4)
    if name in PARAMETERS:
        (cell,) = (cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ()))
        for setting, value in PARAMETERS[name].items():
            cell.source, number = re.subn(rf'^{setting} = \d+', f'{setting} = {value}', cell.source, flags=re.MULTILINE)
            assert number == 1, setting
    resources = {'metadata': {'path': str(here)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3', resources=resources).execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == 'code'}


def printed(outputs: list[Any]) -> str:
    """The text that a cell has printed, and that of its value, without colors."""
    parts = [one.text if one.output_type == 'stream' else one.data.get('text/plain', '') for one in outputs]
    return re.sub(r'\x1b\[[\d;]*m|\r', '', ''.join(parts))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the run; a kernel that is started reaches no network and reads nobody's settings."""
    for variable in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.setenv(variable, 'http://127.0.0.1:9')  # the port of discard: nobody listens
    for variable in ('IPYTHONDIR', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'MPLCONFIGDIR'):
        (tmp_path / 'settings' / variable).mkdir(parents=True)
        monkeypatch.setenv(variable, str(tmp_path / 'settings' / variable))
    monkeypatch.delenv('PYTEST_CURRENT_TEST')  # ipykernel leaves the output of processes out where it is set
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='the notebooks call grep')
@pytest.mark.parametrize('name', NAMES)
def test_every_cell_runs(name: str, offline: Path) -> None:
    for framework in ('mmdet', 'mmseg', 'supervision'):
        pytest.importorskip(framework)
    found = execute(name, offline)
    for ident, pattern in EXPECTED[name].items():
        text = printed(found[ident])
        assert re.search(pattern, text), f'{ident}: {text}'
    for ident in IMAGES[name]:
        (image,) = (one.data['image/png'] for one in found[ident] if 'image/png' in one.get('data', {}))
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert('RGB'))
        assert min(pixels.shape[:2]) > 150
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100, ident  # something is drawn
    if name == 'own_data':  # the test of the checkpoint gives the AP that training ended with
        (at_the_end,) = re.findall(r'box AP (\S+),', printed(found['evaluate']))
        (again,) = re.findall(r'bbox_mAP_copypaste: (\S+)', printed(found['test']))
        assert at_the_end == again
    if name == 'predict':
        saved = (offline / 'work_dirs/notebooks/predictions').iterdir()
        assert sorted(path.name for path in saved) == [f'shapes_{number}.jpg' for number in range(1, 5)]
