from __future__ import annotations

import json
import re
from importlib.util import find_spec

import pytest
from mmengine.config import Config
from PIL import Image

from mmitpn.config_check import check_config
from mmitpn.config_check.dataset_entries import find_datasets

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


def test_evaluator_on_other_images(cfg, tiny_coco, tmp_path):
    content = {**tiny_coco[2], 'images': tiny_coco[2]['images'][:1]}
    other = tmp_path / 'other.json'
    other.write_text(json.dumps(content))
    cfg.val_evaluator.ann_file = str(other)
    with pytest.raises(ValueError, match=r'other.json lacks 1 images of .*image ids 2'):
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
def test_datasets_in_wrappers_are_checked(cfg, wrap):
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset)
    assert check_config(cfg)
    cfg.model.bbox_head.num_classes = 80
    with pytest.raises(ValueError, match=r'train_dataloader.dataset.*2 classes .*model.bbox_head.num_classes = 80'):
        check_config(cfg)


@needs_mmdet
def test_classes_of_the_dataset_itself(cfg):
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


def test_several_annotation_files_are_several_datasets(cfg, tiny_coco):
    """The lines of the message are written into a config, which then passes."""
    content = tiny_coco[2]
    second = {**content, 'images': content['images'][1:], 'annotations': []}
    path = tiny_coco[0].with_name('second.json')
    path.write_text(json.dumps(second | {'annotations': [{**content['annotations'][0], 'image_id': 2}]}))
    files = ['annotations/instances_train2017.json', 'annotations/second.json']
    cfg.train_dataloader.dataset.ann_file = files
    with pytest.raises(ValueError, match=r'train_dataloader.dataset.ann_file is a list of 2 files') as raised:
        check_config(cfg)
    advice = re.search(r"one = dict\(type='CocoDataset', ...\) .*, and (train_dataloader = .*\))$", str(raised.value))[
        1
    ]
    cfg.train_dataloader.dataset.pop('ann_file')
    written = {'one': cfg.train_dataloader.dataset.to_dict()}
    exec(advice, written)  # noqa: S102 - as a config file would
    cfg.merge_from_dict({'train_dataloader': written['train_dataloader']})
    summaries = check_config(cfg)
    assert [summary.path.name for summary in summaries] == ['instances_train2017.json', 'second.json', files[0][12:]]
    cfg.train_dataloader.dataset.datasets[1].ann_file = files
    with pytest.raises(ValueError, match=r'and in the place of train_dataloader.dataset.datasets\[1\] dict\(_delete_'):
        check_config(cfg)


def test_a_dataset_of_the_users_own_may_read_several_files(cfg):
    class Several:
        """Reads a list of files."""

    dataset = {'type': Several, 'ann_file': ['a.json', 'b.json'], 'metainfo': {'classes': ('cat', 'dog')}}
    cfg.train_dataloader.dataset = dataset
    assert len(check_config(cfg)) == 1


LAZY = """
from mmengine.evaluator import BaseMetric
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmitpn import DINO, FastITPN, ITPNPyramid
from mmdet.models import DINOHead

default_scope = 'mmdet'
dataset = dict(
    type=CocoDataset, data_root={root!r}, ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'), metainfo=dict(classes=('cat', 'dog')), pipeline=[])
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
val_evaluator = dict(type=CocoMetric, ann_file={root!r} + '/annotations/instances_train2017.json')
model = dict(
    type=DINO, backbone=dict(type=FastITPN, arch='nano'),
    neck=dict(type=ITPNPyramid, in_channels=(48, 96, 192), out_channels=64, num_outs=4),
    bbox_head=dict(type=DINOHead, num_classes=2))
"""


@needs_mmdet
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, None),
        ({'model.bbox_head.num_classes': 80}, r'has 2 classes .* model.bbox_head.num_classes = 80'),
        ({'model.neck.in_channels': (96, 192, 384)}, r'the backbone gives maps of \(48, 96, 192\) channels'),
        ({'model.decode_head': {'in_channels': [256], 'in_index': [0]}}, r'model.neck gives maps of \(64,\) channels'),
        (
            {'model.neck': {'out_channels': 64, 'concat_backbone': True}, 'model.decode_head.in_channels': [64]},
            r'\(112,',
        ),
        ({'train_dataloader.dataset.classes': ('cat',)}, r'classes is not a setting of CocoDataset'),
        ({'train_dataloader.dataset.ann_file': ['a.json']}, r'one = dict\(type=CocoDataset, ...\)'),
        ({'val_evaluator.ann_file': 'other.json'}, 'lacks 1 images'),
    ],
)
def test_types_that_are_classes(options, message, tiny_coco, tmp_path):
    """A pure Python config is checked as one whose types are strings."""
    content = {**tiny_coco[2], 'images': tiny_coco[2]['images'][:1]}
    (tmp_path / 'other.json').write_text(json.dumps(content))
    (tmp_path / 'lazy.py').write_text(LAZY.format(root=str(tmp_path)))
    cfg = Config.fromfile(tmp_path / 'lazy.py')
    if options.get('val_evaluator.ann_file'):
        options = {'val_evaluator.ann_file': str(tmp_path / 'other.json')}
    cfg.merge_from_dict(options)
    if message is None:
        assert [summary.annotations for summary in check_config(cfg)] == [2, 2]
        return
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_names_of_types():
    from mmengine.config import ConfigDict
    from mmengine.config.lazy import LazyAttr, LazyObject
    from mmengine.dataset import BaseDataset, default_collate

    from mmitpn.config_types import is_type, type_name, type_scope

    lazy = LazyObject('mmdet.datasets', 'CocoDataset')
    attribute = LazyAttr('CocoDataset', LazyObject('mmdet.datasets'))
    for value in ('CocoDataset', 'mmdet.CocoDataset', 'mmdet.datasets.CocoDataset', lazy, attribute):
        assert type_name(value) == type_name({'type': value}) == 'CocoDataset'
        assert is_type(value, 'Other', 'CocoDataset')
        assert is_type(value, 'mmdet.CocoDataset') == (value != 'CocoDataset')
        assert not is_type(value, 'mmseg.CocoDataset', 'Dataset')
    raw = ConfigDict()
    dict.__setitem__(raw, 'type', LazyObject('mmengine.dataset', 'BaseDataset'))
    assert type_name(raw) == type_name(BaseDataset) == 'BaseDataset'
    assert type_name(default_collate) == 'default_collate'
    assert type_scope(BaseDataset) == type_scope(default_collate) == 'mmengine'
    assert type_name(None) == type_name({}) == ''
    assert not is_type(None, '')


@pytest.mark.skipif(find_spec('mmpretrain') is None, reason='mmpretrain is not installed')
def test_classes_and_folders_as_mmpretrain_takes_them(tmp_path):
    dataset = {'type': 'CustomDataset', 'data_root': str(tmp_path), 'data_prefix': 'images', 'pipeline': []}
    cfg = Config({'default_scope': 'mmpretrain', 'train_dataloader': {'dataset': dataset}})
    with pytest.raises(FileNotFoundError, match=r'image folder .*images not found'):
        check_config(cfg)
    for folder in ('images/cat', 'images/dog', 'in/val'):
        (tmp_path / folder).mkdir(parents=True)
        Image.new('RGB', (8, 6)).save(tmp_path / folder / 'a.png')
    cfg.train_dataloader.dataset.classes = ['cat', 'dog']
    assert check_config(cfg) == []
    (found,) = find_datasets(cfg, ('train',))
    assert (found.classes, found.classes_from) == (('cat', 'dog'), 'train_dataloader.dataset.classes')
    cfg.train_dataloader.dataset.classes = 'cat'
    with pytest.raises(ValueError, match=r"train_dataloader.dataset.classes is the string 'cat'"):
        check_config(cfg)
    of_split = {'type': 'ImageNet', 'data_root': str(tmp_path / 'in'), 'split': 'val', 'pipeline': []}
    cfg.train_dataloader.dataset = {**of_split, 'split': 'train'}
    with pytest.raises(FileNotFoundError, match=r'image folder .*in/train not found'):
        check_config(cfg)
    cfg.train_dataloader.dataset = of_split
    (tmp_path / 'in/meta').mkdir(parents=True)
    (tmp_path / 'in/meta/val.txt').write_text('a.png 0\n')
    (found,) = find_datasets(cfg, ('train',))
    assert (found.ann_file, found.prefixes) == ('meta/val.txt', {'img_path': 'val'})
    assert check_config(cfg) == []
