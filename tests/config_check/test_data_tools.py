"""The command lines of tools/data, called as a user does, in this process."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

TOOLS = Path(__file__).parents[2] / 'tools'


def tool(name: str, folder: str = 'data') -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'tools_{folder}_{name}', TOOLS / folder / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_shapes(tmp_path, capsys):
    out, grid = tmp_path / 'shapes', tmp_path / 'grid.png'
    arguments = ['--out', str(out), '--num-train', '2', '--num-val', '1', '--size', '64', '72']
    arguments += ['--image-grid', str(grid)]
    assert tool('make_shapes').main(arguments) == 0
    assert 'train: 2 images' in capsys.readouterr().out
    with Image.open(grid) as image:
        assert len(image.getcolors(1 << 20)) > 100
    assert tool('make_shapes').main([*arguments, '--seed', '4']) == 2
    assert '--overwrite' in capsys.readouterr().err


def test_make_unlabelled_shapes(tmp_path, capsys):
    assert tool('make_shapes').main(['--out', str(tmp_path / 'x'), '--unlabelled', '2', '--size', '64', '64']) == 0
    assert len(list((tmp_path / 'x' / 'images').iterdir())) == 2
    assert 'unlabelled: 2 images' in capsys.readouterr().out


def test_check_a_file(tiny_coco, capsys):
    path, images, content = tiny_coco
    check = tool('check_coco')
    assert check.main([str(path), '--images', str(images), '--classes', 'cat', 'dog']) == 0
    shown = capsys.readouterr().out
    assert 'images looked for and found' in shown
    assert 'no error found' in shown
    assert '--images DIR' not in shown
    assert check.main([str(path), '--classes', 'cat']) == 1
    assert "lacks: 'dog'" in capsys.readouterr().err
    content['annotations'].pop()
    path.write_text(json.dumps(content))
    assert check.main([str(path)]) == 0
    assert '- (--images DIR looks for them)' in capsys.readouterr().out
    assert check.main([str(path), '--strict']) == 1


def test_check_a_config(tiny_coco, tmp_path, capsys):
    path, _, _ = tiny_coco
    config = tmp_path / 'config.py'
    config.write_text(
        f"""
model = dict(bbox_head=dict(type='DINOHead', num_classes=3))
train_dataloader = dict(dataset=dict(type='CocoDataset', data_root={str(tmp_path)!r}, metainfo=dict(
    classes=('cat', 'dog')), ann_file={str(path)!r}, data_prefix=dict(img='train2017/')))
"""
    )
    check = tool('check_coco')
    assert check.main([str(config)]) == 1
    assert 'model.bbox_head.num_classes = 3' in capsys.readouterr().err
    assert check.main([str(config), '--cfg-options', 'model.bbox_head.num_classes=2']) == 0
    assert check.main([str(config), '--images', str(tmp_path)]) == 1
    assert check.main([str(tmp_path / 'nothing.py')]) == 1


def test_browse_files(shapes_root, tmp_path):
    out = tmp_path / 'new' / 'grid.png'
    browse = tool('browse_dataset', 'analysis')
    coco = shapes_root / 'coco'
    arguments = [str(coco / 'annotations/instances_val2017.json'), '--out', str(out), '--number', '4', '--columns', '2']
    assert browse.main([*arguments, '--tile', '100', '--images', str(coco / 'val2017')]) == 0
    with Image.open(out) as image:
        assert image.size[0] == 200
        assert 100 < image.size[1] <= 200  # two rows, each as high as its highest image
    assert browse.main(arguments) == 2
    assert browse.main([*arguments, '--tile', '1']) == 2


def test_browse_after_the_pipeline(shapes_root, tmp_path):
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    out = tmp_path / 'grid.png'
    config = TOOLS.parent / 'configs/_base_/datasets/shapes_detection.py'
    option = f'train_dataloader.dataset.data_root={shapes_root / "coco"}'
    assert (
        tool('browse_dataset', 'analysis').main(
            [str(config), '--out', str(out), '--number', '6', '--cfg-options', option]
        )
        == 0
    )
    with Image.open(out) as image:
        assert len(image.getcolors(1 << 22)) > 100


def test_browse_label_maps(shapes_root, tmp_path):
    pytest.importorskip('mmseg', reason='mmseg is not installed')
    out = tmp_path / 'grid.png'
    config = TOOLS.parent / 'configs/_base_/datasets/shapes_segmentation.py'
    options = [f'train_dataloader.dataset.data_root={shapes_root / "ade/ADEChallengeData2016"}', 'default_scope=mmseg']
    browse = tool('browse_dataset', 'analysis')
    assert browse.main([str(config), '--out', str(out), '--number', '2', '--cfg-options', *options]) == 0
    with Image.open(out) as image:
        assert len(image.getcolors(1 << 22)) > 100


MASKS = {
    'masks reach outside their image': [[0, 0, 900, 0, 900, 900]],
    'another [height, width] than their image': {'size': [1, 2], 'counts': 'x'},
    'neither run lengths nor polygons': [[1, 2]],
}


@pytest.mark.parametrize('message', MASKS)
def test_broken_masks_are_named(tiny_coco, capsys, message):
    path, images, content = tiny_coco
    content['annotations'][0]['segmentation'] = MASKS[message]
    path.write_text(json.dumps(content))
    assert tool('check_coco').main([str(path), '--images', str(images)]) == 1
    assert message in capsys.readouterr().err


def test_broken_images_are_named(tiny_coco, capsys):
    path, images, _ = tiny_coco
    arguments = [str(path), '--images', str(images)]
    Image.new('RGB', (3, 4)).save(images / 'a.jpg')
    assert tool('check_coco').main(arguments) == 1
    assert 'a.jpg is 3x4, not 64x48' in capsys.readouterr().err
    (images / 'a.jpg').write_bytes(b'x')
    assert tool('check_coco').main(arguments) == 1
    assert "color_type='color'): 'a.jpg'; get them again" in capsys.readouterr().err
    assert tool('check_coco').main([*arguments, '--quick']) == 0
