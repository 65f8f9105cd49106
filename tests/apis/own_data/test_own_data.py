"""Configs of this project, mmdet and mmseg follow a user's dataset, and the result trains and tests alone."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmitpn.apis.data_layouts import read_own_data, split_off_validation, write_own_data
from mmitpn.apis.own_data import RunOptions, set_num_classes, task_of, use_own_data, write_resolved_config
from mmitpn.commands import test as test_command
from mmitpn.commands import train as train_command
from mmitpn.config_check import check_config
from mmitpn.datasets.shapes import generate_shapes
from mmitpn.engine.cli import load_config
from mmitpn.engine.config_utils import register_host_configs

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
DetLocalVisualizer = pytest.importorskip('mmdet.visualization').DetLocalVisualizer
register_host_configs()

HEADS = {
    'dino-4scale_fast-itpn-b_8xb2-12e_coco': ['bbox_head.num_classes'],
    'dino_fast-itpn-nano_shapes': ['bbox_head.num_classes'],
    'mask-dino_fast-itpn-b_8xb2-50e_coco-instance': ['panoptic_head.num_things_classes'],
    'mask-rcnn_fast-itpn-b_8xb8-12e_coco': ['roi_head.bbox_head.num_classes', 'roi_head.mask_head.num_classes'],
    'cascade-mask-rcnn_fast-itpn-b_8xb8-36e_coco': [
        *(f'roi_head.bbox_head.{index}.num_classes' for index in range(3)),
        'roi_head.mask_head.num_classes',
    ],
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco': ['roi_head.bbox_head.num_classes'],
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712': ['roi_head.bbox_head.num_classes'],
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco': [
        'panoptic_head.num_things_classes',
        'panoptic_fusion_head.num_things_classes',
    ],
    'upernet_fast-itpn-b_8xb2-160k_ade20k-512x512': ['decode_head.num_classes', 'auxiliary_head.num_classes'],
    'mask-dino_fast-itpn-b_8xb2-160k_ade20k-512x512': ['decode_head.num_classes'],
    'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024': ['decode_head.num_classes'],
    'mmseg::upernet/upernet_r50_4xb4-40k_voc12aug-512x512': ['decode_head.num_classes', 'auxiliary_head.num_classes'],
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory, layouts) -> dict[str, Path]:
    """Boxes without and with masks, and label maps: four images each, with no validation set."""
    root = tmp_path_factory.mktemp('own')
    layouts.coco(root / 'boxes/all.json', root / 'boxes', layouts.samples)
    layouts.coco(root / 'masks/all.json', root / 'masks', layouts.samples, masks=True)
    layouts.maps(root / 'maps/images', root / 'maps/masks', layouts.samples)
    (root / 'maps/classes.txt').write_text('bird\ncat\ndog\n')
    return {name: root / name for name in ('boxes', 'masks', 'maps')}


def own(cfg: Config, folder: Path, work_dir: Path, options: RunOptions | None = None) -> list[str]:
    cfg.work_dir = str(work_dir)
    data = split_off_validation(read_own_data(folder, task=task_of(cfg)), fraction=0.5)
    return use_own_data(cfg, write_own_data(data, work_dir / 'data'), options)


@pytest.mark.parametrize('name', HEADS)
def test_a_config_follows_the_data(name, folders, tmp_path, layouts):
    cfg = load_config(name)
    task = task_of(cfg)
    lines = own(cfg, folders['masks' if task == 'instances' else 'maps'], tmp_path, RunOptions(batch=1, epochs=2))
    for key in HEADS[name]:
        part = cfg.model
        for step in key.split('.'):
            part = part[int(step)] if step.isdigit() else part[step]
        assert part == 3, key
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        assert dataset.metainfo.classes == layouts.classes
        assert len(dataset.metainfo.palette) == 3
        expected = {'instances': f'{"train" if split == "train" else "val"}.json', 'semantic': 'txt'}
        assert dataset.ann_file.endswith(expected[task])
    if task == 'instances':
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == str(tmp_path / 'data/val.json')
    else:
        assert cfg.train_dataloader.dataset.reduce_zero_label is False
    check_config(cfg)
    assert any(line.startswith('learning rate') for line in lines)
    # It is read again as it was, without the names that led to it.
    path = write_resolved_config(cfg, tmp_path / 'resolved.py')
    again = Config.fromfile(path)
    assert '_base_ =' not in path.read_text()
    assert not {'data_root', 'train_pipeline', 'dataset_type', 'work_dir'} & set(again)
    for key in ('work_dir', 'resume'):
        cfg.pop(key, None)
    assert again.to_dict() == cfg.to_dict()
    assert again.own_data.changes == lines


def test_class_weights_of_a_loss_get_the_new_length(folders, tmp_path):
    cfg = load_config('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco')
    own(cfg, folders['masks'], tmp_path)
    assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 1.0, 0.1]
    model = {'bbox_head': {'type': 'X', 'num_classes': 2, 'loss_cls': {'class_weight': [1.0, 2.0]}}}
    lines = set_num_classes(model, 3)
    assert model['bbox_head']['loss_cls']['class_weight'] == [1.0, 1.0, 1.0]
    assert lines[-1] == 'model.bbox_head.loss_cls.class_weight: weights of 2 other classes -> 1.0 for each'


def test_heads_with_classes_of_their_own_keep_them():
    model = {
        'decode_head': {'type': 'FCNHead', 'num_classes': 19, 'out_channels': 19},
        'auxiliary_head': [{'type': 'FCNHead', 'num_classes': 19}, {'type': 'STDCHead', 'num_classes': 2}],
    }
    set_num_classes(model, 4)
    assert model['decode_head'] == {'type': 'FCNHead', 'num_classes': 4, 'out_channels': 4}
    assert [head['num_classes'] for head in model['auxiliary_head']] == [4, 2]
    with pytest.raises(ValueError, match='no head of the model has a number of classes'):
        set_num_classes({'backbone': {}}, 3)


def test_the_test_split_is_what_is_tested(tmp_path, layouts):
    for split in ('train', 'valid', 'test'):
        layouts.coco(tmp_path / 'd' / split / '_annotations.coco.json', tmp_path / 'd' / split, layouts.samples)
    cfg = load_config('dino_fast-itpn-nano_shapes')
    cfg.work_dir = str(tmp_path)
    use_own_data(cfg, write_own_data(read_own_data(tmp_path / 'd'), tmp_path / 'w'))
    assert cfg.test_evaluator.ann_file == cfg.test_dataloader.dataset.data_root + 'test/_annotations.coco.json'
    assert 'valid/_annotations.coco.json' in cfg.val_evaluator.ann_file


@pytest.mark.parametrize(
    ('config', 'folder', 'message'),
    [
        ('mask-dino_fast-itpn-b_8xb2-50e_coco-instance', 'boxes', 'learns masks, but .* has boxes only .*COCO'),
        ('dino_fast-itpn-nano_shapes', 'maps', 'has label maps for semantic .* use a semantic config'),
        ('upernet_fast-itpn-nano_shapes', 'masks', r'has boxes or masks of objects \(COCO\), .* use a detection or'),
        ('mask-dino_fast-itpn-b_8xb2-50e_coco-panoptic', 'masks', 'no layout for panoptic segmentation'),
        ('fast-itpn-b_16xb64-20e_in1k-224', 'maps', 'a classifier takes a folder for each class'),
    ],
)
def test_configs_for_other_data(config, folder, message, folders, tmp_path, capsys):
    if config.startswith('fast-itpn'):
        pytest.importorskip('mmpretrain')
    status = train_command.main([config, '--data', str(folders[folder]), '--work-dir', str(tmp_path)])
    assert status == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--epochs', '3'], '--epochs belongs to --data DIR'),
        (['--split-seed', '0'], '--split-seed belongs to --data DIR'),
        (['--data', 'nowhere'], "no folder 'nowhere' for --data"),
    ],
)
def test_options_that_do_not_fit(options, message, tmp_path, capsys):
    assert train_command.main(['dino_fast-itpn-nano_shapes', '--work-dir', str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def three_classes(tmp_path_factory) -> Path:
    """52 generated images, three of the five classes."""
    root = tmp_path_factory.mktemp('shapes')
    generate_shapes(root, 40, 12, seed=5, size=(48, 64))
    for split in ('train', 'val'):
        path = root / f'coco/annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        content['categories'] = sorted(content['categories'][:3], key=lambda one: one['name'])
        ids = {one['id']: index for index, one in enumerate(content['categories'], start=1)}
        content['categories'] = [{**one, 'id': ids[one['id']]} for one in content['categories']]
        kept = [one for one in content['annotations'] if one['category_id'] in ids]
        content['annotations'] = [
            {key: value for key, value in one.items() if key != 'segmentation'}
            | {'category_id': ids[one['category_id']], 'area': one['bbox'][2] * one['bbox'][3]}
            for one in kept
        ]
        path.write_text(json.dumps(content))
    return root / 'coco'


def write_layouts(coco: Path, root: Path, layouts) -> dict[str, Path]:
    """Write a COCO dataset in YOLO's and Pascal VOC's layout too, with links to the same images."""
    for split in ('train', 'val'):
        content = json.loads((coco / f'annotations/instances_{split}2017.json').read_text())
        names = {one['id'] - 1: one['name'] for one in content['categories']}
        objects = {one['id']: [] for one in content['images']}
        for one in content['annotations']:
            objects[one['image_id']].append((one['category_id'] - 1, one['bbox']))
        (root / 'voc/JPEGImages').mkdir(parents=True, exist_ok=True)
        (root / 'voc/Annotations').mkdir(exist_ok=True)
        (root / 'voc/ImageSets/Main').mkdir(parents=True, exist_ok=True)
        stems = []
        for folder in (f'yolo/images/{split}', f'yolo/labels/{split}'):
            (root / folder).mkdir(parents=True)
        for image in content['images']:
            path, size = coco / f'{split}2017' / image['file_name'], (image['width'], image['height'])
            stems.append(path.stem)
            (root / f'yolo/images/{split}' / path.name).symlink_to(path)
            (root / 'voc/JPEGImages' / path.name).symlink_to(path)
            lines = [
                f'{label} {(x + w / 2) / size[0]:.6f} {(y + h / 2) / size[1]:.6f} {w / size[0]:.6f} {h / size[1]:.6f}\n'
                for label, (x, y, w, h) in objects[image['id']]
            ]
            (root / f'yolo/labels/{split}/{path.stem}.txt').write_text(''.join(lines))
            found = ''.join(
                f'<object><name>{names[label]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
                f'<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>'
                for label, (x, y, w, h) in objects[image['id']]
            )
            (root / f'voc/Annotations/{path.stem}.xml').write_text(f'<annotation>{found}</annotation>')
        (root / f'voc/ImageSets/Main/{split}.txt').write_text('\n'.join(stems))
    (root / 'yolo/data.yaml').write_text(f'train: images/train\nval: images/val\nnames: {list(names.values())}\n')
    return {'coco': coco, 'yolo': root / 'yolo', 'voc': root / 'voc'}


def run(folder: Path, work_dir: Path, *options: str) -> list[dict[str, float]]:
    """Train the quick start's detector for a few steps; returns what was logged."""
    arguments = ['dino_fast-itpn-nano_shapes', '--data', str(folder), '--work-dir', str(work_dir), '--batch', '2']
    settings = ['randomness.seed=3', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
    settings += ['default_hooks.logger.interval=1', 'train_cfg.max_iters=4', 'train_cfg.val_interval=4']
    return train([*arguments, *options, '--cfg-options', *settings], work_dir)


def train(arguments: list[str], work_dir: Path) -> list[dict[str, float]]:
    DetLocalVisualizer._instance_dict.clear()  # mmengine would log a second run of this process into the first's folder
    assert train_command.main(arguments) == 0
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture(scope='module')
def runs(three_classes, tmp_path_factory, layouts) -> SimpleNamespace:
    """The same data in three layouts, a short run on each, and what the one on YOLO's printed."""
    root = tmp_path_factory.mktemp('layouts')
    folders = write_layouts(three_classes, root, layouts)
    logs, shown = {}, io.StringIO()
    for name, folder in folders.items():
        with contextlib.redirect_stdout(shown if name == 'yolo' else io.StringIO()):
            logs[name] = run(folder, root / f'run_{name}', '--no-report')
    return SimpleNamespace(folders=folders, logs=logs, shown=shown.getvalue(), yolo=root / 'run_yolo')


@pytest.mark.slow
def test_three_layouts_give_the_same_run(runs):
    found = {name: read_own_data(folder) for name, folder in runs.folders.items()}
    assert {data.layout for data in found.values()} == {'COCO', 'YOLO', 'Pascal VOC'}
    assert sum(split.num_images for split in found['coco'].splits.values()) == 52
    logs = {
        name: [
            {key: value for key, value in line.items() if not key.endswith('time') and key != 'memory'} for line in log
        ]
        for name, log in runs.logs.items()
    }
    assert len(logs['coco']) == 5  # four steps and a validation
    assert logs['coco'][0]['loss'] > 0
    assert logs['yolo'] == logs['coco']
    assert logs['voc'] == logs['coco']


@pytest.mark.slow
def test_the_resolved_config_trains_and_tests_again_alone(runs, tmp_path):
    assert 'YOLO, 3 classes' in runs.shown
    assert '| coco/bbox_mAP ' in runs.shown
    resolved = str(runs.yolo / 'dino_fast-itpn-nano_shapes.py')
    tested = ['--work-dir', str(tmp_path / 'tested'), '--no-report']
    assert test_command.main([resolved, str(runs.yolo / 'iter_4.pth'), *tested]) == 0
    metrics = json.loads((tmp_path / 'tested/test_metrics.json').read_text())['metrics']
    of_run = json.loads((runs.yolo / 'test_metrics.json').read_text())['metrics']
    assert metrics == of_run
    again = train([resolved, '--work-dir', str(tmp_path / 'again'), '--no-report'], tmp_path / 'again')
    assert [line['loss'] for line in again if 'loss' in line] == [
        line['loss'] for line in runs.logs['yolo'] if 'loss' in line
    ]
