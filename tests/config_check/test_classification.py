"""Classification datasets of mmpretrain, one mistake at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image

from mmitpn.config_check import check_config

pytest.importorskip('mmpretrain')

PIPELINE = [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (8, 6)).save(path)


@pytest.fixture
def cfg(tmp_path) -> Config:
    """Class folders cat, dog and eel for training and validation, and a head of three classes."""
    cfg = {
        'default_scope': 'mmpretrain',
        'model': {'type': 'ImageClassifier', 'head': {'type': 'LinearClsHead', 'num_classes': 3, 'in_channels': 4}},
    }
    for split in ('train', 'val'):
        for name in ('cat', 'dog', 'eel'):
            save(tmp_path / split / name / 'a.jpg')
            save(tmp_path / split / name / 'b.PNG')
        dataset = {'type': 'CustomDataset', 'data_root': str(tmp_path), 'data_prefix': split, 'pipeline': PIPELINE}
        cfg[f'{split}_dataloader'] = {'dataset': dataset}
        cfg[f'{split}_evaluator'] = {'type': 'Accuracy', 'topk': (1,)}
    cfg['test_dataloader'], cfg['test_evaluator'] = cfg['val_dataloader'], cfg['val_evaluator']
    return Config(cfg)


def lines(cfg: Config, text: str, split: str = 'train') -> None:
    """Annotation lines instead of class folders."""
    dataset = cfg[f'{split}_dataloader'].dataset
    (Path(dataset.data_root) / f'{split}.txt').write_text(text)
    dataset.update(ann_file=f'{split}.txt')


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_good_datasets(cfg, tmp_path):
    assert check_config(cfg, splits=['train', 'val', 'test']) == []
    lines(cfg, 'cat/a.jpg 0\ndog/a.jpg 1\neel/b.PNG 2\n')
    assert check_config(cfg) == []
    remove(tmp_path / 'train' / 'cat')
    assert check_config(cfg, splits=['test']) == []  # looks at the test split only


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('cat/a.jpg 0\n\ndog/a.jpg 1\n', r"1 of 3 lines of .* are not .PATH LABEL.*line 2: ''"),
        ('cat/a.jpg,0\n', r"line 1: 'cat/a.jpg,0'"),
        ('cat/a.jpg\t0\n', 'no comma or tab'),
        ('cat/a.jpg cat\n', r"line 1: 'cat/a.jpg cat'"),
        ('cat/a.jpg\n', r"line 1: 'cat/a.jpg'"),
        ('', 'names no images'),
        (
            'cat/a.jpg 1\ndog/a.jpg 2\neel/a.jpg 3\n',
            r'without a class \(3; .* allows 0 to 2\); labels begin with 0: sub',
        ),
        ('cat/a.jpg 0\ndog/a.jpg 7\n', r'1 images have labels without a class \(7; .*set model.head.num_classes=8'),
        ('cat/a.jpg -1\ndog/a.jpg 1\n', r'without a class \(-1;.*correct the labels'),
        ('cat/a.jpg 1\ndog/a.jpg 1\n', 'all images have one label, 1, of 3 classes'),
    ],
)
def test_lines_of_an_annotation_file(cfg, text, message):
    lines(cfg, text)
    with pytest.raises(ValueError, match=message):
        check_config(cfg, splits=['train'])


def test_images_that_are_missing_or_broken(cfg, tmp_path):
    lines(cfg, 'cat/a.jpg 0\ndog/none.jpg 1\n')
    with pytest.raises(FileNotFoundError, match=r'1 of 2 images looked for are missing: .*dog/none\.jpg'):
        check_config(cfg, splits=['train'])
    (tmp_path / 'train' / 'dog' / 'none.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match=r'1 of 2 images looked at cannot be read by LoadImageFromFile.*none\.jpg'):
        check_config(cfg, splits=['train'])


def test_no_images_in_class_folders(cfg, tmp_path):
    for folder in (tmp_path / 'train').iterdir():
        for path in folder.iterdir():
            path.rename(path.with_suffix('.webp'))
    with pytest.raises(ValueError, match=r"holds no images in a folder for each class, but 3 folders and .*'\.webp'"):
        check_config(cfg, splits=['train'])
    cfg.train_dataloader.dataset.extensions = ('.webp',)  # the advice
    assert check_config(cfg, splits=['train']) == []


def test_images_beside_instead_of_in_class_folders(cfg, tmp_path):
    save(tmp_path / 'flat' / 'a.jpg')
    cfg.train_dataloader.dataset.data_prefix = 'flat'
    with pytest.raises(ValueError, match=r"but 0 folders and files with '\.jpg'.*put the images of each class into"):
        check_config(cfg, splits=['train'])


def test_an_empty_class_folder_is_a_warning(cfg, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('mmitpn.config_check.classification.print_log', lambda text, *_: logged.append(text))
    for path in (tmp_path / 'train' / 'dog').iterdir():
        path.unlink()
    assert check_config(cfg) == []
    assert len(logged) == 1
    assert '1 of 3 class folders hold no images' in logged[0]
    assert logged[0].endswith("'dog'")
    for path in (tmp_path / 'train' / 'eel').iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="all images have one label, 'cat', of 3 classes"):
        check_config(cfg)


def test_a_class_folder_that_one_split_lacks_moves_the_labels(cfg, tmp_path):
    remove(tmp_path / 'val' / 'dog')
    with pytest.raises(ValueError, match=r"'eel' would have other labels: val_dataloader.dataset lacks 'dog'"):
        check_config(cfg)
    (tmp_path / 'val' / 'dog').mkdir()  # the advice
    assert check_config(cfg) == []
    remove(tmp_path / 'val' / 'eel')  # the last one: no label moves
    assert check_config(cfg) == []


def test_class_folders_and_classes(cfg, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('mmitpn.config_check.classification.print_log', lambda text, *_: logged.append(text))
    cfg.train_dataloader.dataset.metainfo = {'classes': ('cat', 'dog', 'eel', 'fox')}
    with pytest.raises(ValueError, match=r"holds 3 class folders, but there are 4 classes \('fox' differ\)"):
        check_config(cfg, splits=['train'])
    cfg.train_dataloader.dataset.metainfo = {'classes': ('dog', 'cat', 'eel')}
    assert check_config(cfg, splits=['train']) == []
    assert "numbered by the sorted folders ('cat', 'dog', 'eel'), but metainfo.classes has the order" in logged[0]


def test_more_class_folders_than_classes_of_the_head(cfg):
    cfg.model.head.num_classes = 2
    with pytest.raises(
        ValueError, match=r'1 class folders have labels without a class \(2; .*set model.head.num_classes=3'
    ):
        check_config(cfg)


def test_labels_that_are_needed_but_not_read(cfg, tmp_path):
    save(tmp_path / 'test' / 'a.jpg')
    cfg.test_dataloader.dataset = {
        'type': 'ImageNet',
        'data_root': str(tmp_path),
        'split': 'test',
        'pipeline': PIPELINE,
    }
    with pytest.raises(
        ValueError, match=r'reads no labels \(with_label=False, as of ImageNet with split=test\), but test_'
    ):
        check_config(cfg, splits=['test'])
    cfg.train_dataloader.dataset.with_label = False
    with pytest.raises(ValueError, match=r'with_label=False.*but the head learns from them'):
        check_config(cfg, splits=['train'])
    cfg.model = {'type': 'MAE', 'head': {'type': 'MAEPretrainHead'}}
    assert check_config(cfg, splits=['train']) == []


@pytest.mark.parametrize('kind', ['BaseDataset', 'MultiLabelDataset'])
def test_json_files(cfg, tmp_path, kind):
    dataset = cfg.train_dataloader.dataset
    dataset.update(type=kind, ann_file='train.json')
    several = kind == 'MultiLabelDataset'

    def check(entries):
        content = {'metainfo': {'classes': ['cat', 'dog', 'eel']}, 'data_list': entries}
        (tmp_path / 'train.json').write_text(json.dumps(content))
        return check_config(cfg, splits=['train'])

    good = [{'img_path': f'{name}/a.jpg', 'gt_label': [i] if several else i} for i, name in enumerate(('cat', 'dog'))]
    assert check(good) == []
    with pytest.raises(ValueError, match='names no images'):
        check([])
    with pytest.raises(ValueError, match=r'1 of 3 entries .* gt_label: .data_list\[2\].gt_label is None'):
        check([*good, {'img_path': 'eel/a.jpg'}])
    with pytest.raises(ValueError, match=r"is 'dog'"):
        check([*good, {'img_path': 'eel/a.jpg', 'gt_label': 'dog'}])
    with pytest.raises(ValueError, match='cannot be read'):
        check([*good, {'gt_label': 1}])
    with pytest.raises(ValueError, match=r'without a class \(3;'):
        check([*good, {'img_path': 'eel/a.jpg', 'gt_label': [3] if several else 3}])
    (tmp_path / 'train.json').write_text('[]')
    with pytest.raises(ValueError, match='it must hold metainfo and data_list'):
        check_config(cfg, splits=['train'])


@pytest.mark.parametrize('split', ['val', 'test'])
def test_the_best_five_of_three_classes(cfg, split):
    cfg[f'{split}_evaluator'] = {'type': 'Accuracy', 'topk': (1, 5)}
    with pytest.raises(ValueError, match=rf'{split}_evaluator.topk is \(1, 5\), but .* 3 classes.*set .*topk=\(1,\)'):
        check_config(cfg, splits=[split])
    assert check_config(cfg, splits=['train']) == []


def test_mixed_labels_of_another_number_of_classes(cfg):
    cfg.model.train_cfg = {'augments': [{'type': 'Mixup', 'alpha': 0.8}]}
    cfg.data_preprocessor = {'num_classes': 1000}
    with pytest.raises(ValueError, match=r'data_preprocessor.num_classes is 1000, but model.head.num_classes 3'):
        check_config(cfg)
    cfg.data_preprocessor.num_classes = 3
    assert check_config(cfg) == []
