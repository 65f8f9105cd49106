"""Images with label maps, one mistake at a time."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmitpn.config_check import check_config

pytest.importorskip('mmseg')

TOOL = Path(__file__).parents[2] / 'tools' / 'data' / 'check_semantic.py'
CONFIG = """
default_scope = 'mmseg'
train_dataloader = dict(
    batch_size=1,
    dataset=dict(
        type='BaseSegDataset', data_root={root!r}, img_suffix='.png', seg_map_suffix='.png', reduce_zero_label={reduce},
        metainfo=dict(classes=('cat', 'dog'), palette=[[0, 0, 0], [1, 1, 1]]),
        data_prefix=dict(img_path='images', seg_map_path='maps'), pipeline=[]))
"""


@pytest.fixture
def root(tmp_path):
    """Two images with maps of labels 0 to 2, and the config for them."""
    for name in ('images', 'maps'):
        (tmp_path / name).mkdir()
    for index in range(2):
        Image.fromarray(np.full((6, 8, 3), index, np.uint8)).save(tmp_path / 'images' / f'{index}.png')
        labels = np.zeros((6, 8), np.uint8)
        labels[:2], labels[2:3] = 1, 2
        Image.fromarray(labels).save(tmp_path / 'maps' / f'{index}.png')
    return tmp_path


def check(root: Path, capsys, *arguments: str, reduce: bool = True) -> tuple[int, str, str]:
    (root / 'config.py').write_text(CONFIG.format(root=str(root), reduce=reduce))
    spec = importlib.util.spec_from_file_location('tool_check_semantic', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    status = tool.main([str(root / 'config.py'), '--splits', 'train', *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_a_good_dataset_and_its_balance(root, capsys):
    status, out, err = check(root, capsys)
    assert (status, err.strip()) == (0, '')
    assert 'no error found' in out
    assert [cell.strip() for cell in next(x for x in out.splitlines() if 'cat' in x).split('│')[1:-1]] == [
        *('cat', '32', '33.33%', '2')
    ]
    assert '50.0% of the pixels without a class' in out


def test_reduce_zero_label_forgotten(root, capsys):
    status, _, err = check(root, capsys, reduce=False)
    assert status == 1
    assert 'label values without a class (2 classes: 0 to 1' in err
    assert '2 in 2 map(s)' in err
    assert 'set it to True' in err


def test_reduce_zero_label_too_much(root, capsys):
    for path in (root / 'maps').iterdir():
        Image.fromarray(np.ones((6, 8), np.uint8)).save(path)
    status, out, _ = check(root, capsys)
    assert status == 0
    assert 'is label 0 a class?' in out
    assert "never seen: 'dog'" in out
    assert check(root, capsys, '--strict')[0] == 1


def damage(root: Path, kind: str) -> str:
    first = root / 'maps' / '0.png'
    if kind == 'color':
        Image.fromarray(np.arange(144).reshape(6, 8, 3).astype(np.uint8)).save(first)
        return 'label maps that are color images; a map has one channel'
    if kind == 'gray':
        Image.fromarray(np.ones((6, 8, 3), np.uint8)).save(first)
        return 'label maps that are color images, though of grays only'
    if kind == 'size':
        Image.fromarray(np.zeros((5, 8), np.uint8)).save(first)
        return 'label maps of another size than their image'
    if kind == 'sixteen bits':
        Image.fromarray(np.full((6, 8), 257, np.uint16)).save(first)
        return 'label maps with values above 255'
    if kind == 'no map':
        first.unlink()
        return 'missing label maps'
    if kind == 'cut off':
        first.write_bytes(first.read_bytes()[:40])
        return 'label maps that cannot be read'
    if kind == 'no image':
        (root / 'images' / '0.png').write_bytes(b'')
        return 'images that cannot be read'
    (root / 'images' / '0.png').write_bytes(b'GIF')
    return 'images that cannot be read'


@pytest.mark.parametrize(
    'kind', ['color', 'gray', 'size', 'sixteen bits', 'no map', 'cut off', 'no image', 'bad image']
)
def test_broken_files_are_named(root, capsys, kind):
    wanted = damage(root, kind)
    status, _, err = check(root, capsys)
    assert status == 1
    assert f'1 {wanted}' in err
    assert '0.png' in err
    assert '1.png' not in err


def test_folders_that_are_not_there(tmp_path, capsys):
    status, _, err = check(tmp_path, capsys)
    assert status == 1
    assert f'error: train_dataloader.dataset: {tmp_path / "images"} not found' in err


def test_no_images_with_this_suffix(root, capsys):
    for path in (root / 'images').iterdir():
        path.rename(path.with_suffix('.JPG'))
    status, _, err = check(root, capsys)
    assert status == 1
    assert f"no images found with img_suffix='.png': {root / 'images'} holds files with '.JPG'" in err


def checked_before_training(
    root: Path, *, pipeline: str = "[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]"
):
    text = CONFIG.format(root=str(root), reduce=True).replace('pipeline=[]', f'pipeline={pipeline}')
    return check_config(Config.fromstring(text, '.py'), splits=['train'])


def test_before_a_training_run_some_maps_are_opened(root):
    assert checked_before_training(root) == []
    Image.fromarray(np.arange(144).reshape(6, 8, 3).astype(np.uint8)).save(root / 'maps' / '1.png')
    with pytest.raises(ValueError, match=r'1 label maps that are color images.*1\.png.*check_semantic'):
        checked_before_training(root)
    Image.fromarray(np.full((6, 8), 9, np.uint8)).save(root / 'maps' / '1.png')
    with pytest.raises(ValueError, match='label values without a class'):
        checked_before_training(root)


def test_maps_of_a_loader_that_is_not_registered_are_left_alone(root):
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / 'maps' / '1.png')
    assert checked_before_training(root, pipeline="[dict(type='LoadImageFromFile'), dict(type='LoadMyMaps')]") == []
