from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from mmitpn.datasets import check_config

needs_mmdet = pytest.mark.skipif(find_spec('mmdet') is None, reason='mmdet is not installed')


def test_a_good_config_passes(cfg):
    summaries = check_config(cfg)
    assert [summary.annotations for summary in summaries] == [2, 2]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'metainfo.classes': 'cat'}, r"metainfo.classes is the string 'cat'.*\('cat',\)"),
        ({'classes': 'cat'}, r"dataset.classes is not a setting.*metainfo=dict\(classes=\('cat',\)\)"),
        (
            {'metainfo': {'CLASSES': ('cat', 'dog'), '_delete_': True}},
            r'metainfo.CLASSES is not read.*metainfo.classes',
        ),
        ({'metainfo.classes': ('cat', 'cat')}, r"metainfo.classes names 'cat' more than once"),
        ({'metainfo.classes': ('cat', 3)}, r'must hold strings, but holds 3'),
        ({'metainfo.classes': ()}, r'metainfo.classes is empty'),
    ],
)
def test_badly_written_classes(cfg, options, message):
    cfg.merge_from_dict({f'train_dataloader.dataset.{key}': value for key, value in options.items()})
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_classes_from_a_file(cfg, tmp_path):
    names = tmp_path / 'classes.txt'
    names.write_text('cat\ndog\n')
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.metainfo.classes = str(names)
    assert check_config(cfg)


def test_missing_files(cfg):
    cfg.train_dataloader.dataset.ann_file = 'annotations/train.json'
    with pytest.raises(
        FileNotFoundError, match=r"train_dataloader.dataset: annotation file .*'instances_train2017.json'"
    ):
        check_config(cfg)
    cfg.train_dataloader.dataset.ann_file = 'nowhere/train.json'
    with pytest.raises(FileNotFoundError, match=r'there is no folder .*nowhere; data_root is .*correct data_root'):
        check_config(cfg)


def test_missing_image_folder(cfg):
    cfg.val_dataloader.dataset.data_prefix.img = 'val2017/'
    with pytest.raises(FileNotFoundError, match=r'val_dataloader.dataset: image folder .*val2017 not found'):
        check_config(cfg)


def test_missing_evaluator_file(cfg):
    cfg.val_evaluator.ann_file = 'annotations/instances_val2017.json'
    with pytest.raises(FileNotFoundError, match=r'val_evaluator.ann_file .* not joined with data_root'):
        check_config(cfg)


def test_evaluator_on_other_pictures(cfg, tiny_coco, tmp_path):
    content = {**tiny_coco[2], 'images': tiny_coco[2]['images'][:1]}
    other = tmp_path / 'other.json'
    other.write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(other)
    with pytest.raises(ValueError, match=r'other.json lacks 1 pictures of .*image ids 2'):
        check_config(cfg)


def test_paths_are_joined_as_mmengine_does(cfg):
    dataset = cfg.train_dataloader.dataset
    dataset.ann_file = f'{dataset.data_root}/annotations/instances_train2017.json'
    dataset.data_prefix.img = f'{dataset.data_root}/train2017'
    assert check_config(cfg)
    dataset.data_root = None
    assert check_config(cfg)


def test_remote_data_is_not_looked_for(cfg):
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.update(data_root='s3://bucket/coco/')
    assert check_config(cfg) == []


def test_categories_the_config_lacks(cfg):
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.metainfo.classes = ('cat',)
    cfg.model.bbox_head.num_classes = 1
    with pytest.raises(ValueError, match=r"has categories that train_dataloader.dataset.metainfo lacks: 'dog'"):
        check_config(cfg)
    cfg.allow_class_subset = True
    assert check_config(cfg)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda one: {'type': 'RepeatDataset', 'times': 2, 'dataset': one},
        lambda one: {'type': 'ClassBalancedDataset', 'oversample_thr': 0.1, 'dataset': one},
        lambda one: {'type': 'MultiImageMixDataset', 'dataset': one, 'pipeline': []},
        lambda one: {'type': 'ConcatDataset', 'datasets': [one, one]},
        lambda one: {'type': 'RepeatDataset', 'times': 2, 'dataset': {'type': 'ConcatDataset', 'datasets': [one]}},
    ],
)
def test_data_sets_in_wrappers_are_checked(cfg, wrap):
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset)
    assert check_config(cfg)
    cfg.model.bbox_head.num_classes = 80
    with pytest.raises(ValueError, match=r'train_dataloader.dataset.*2 classes .*model.bbox_head.num_classes = 80'):
        check_config(cfg)


@needs_mmdet
def test_classes_of_the_data_set_itself(cfg):
    for split in ('train', 'val'):
        del cfg[f'{split}_dataloader'].dataset['metainfo']
    with pytest.raises(ValueError, match=r'has 80 classes .*no metainfo.classes, so the classes of CocoDataset itself'):
        check_config(cfg)
    cfg.model.bbox_head.num_classes = 80
    with pytest.raises(ValueError, match=r"classes that the file lacks: 'person'"):
        check_config(cfg)


def test_different_classes_in_training_and_validation(cfg):
    cfg.val_dataloader.dataset.metainfo.classes = ('dog', 'cat')
    with pytest.raises(ValueError, match=r'train_dataloader.dataset and val_dataloader.dataset have different classes'):
        check_config(cfg)


def test_arguments(cfg):
    with pytest.raises(TypeError, match=r'Config\.fromfile'):
        check_config('config.py')
    with pytest.raises(ValueError, match='splits must be some of'):
        check_config(cfg, splits='train')
    assert check_config(cfg, splits=('test',)) == []
