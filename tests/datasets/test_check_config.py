from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from mmengine.config import Config

from mmitpn.datasets import check_config

needs_mmdet = pytest.mark.skipif(find_spec('mmdet') is None, reason='mmdet is not installed')


@pytest.fixture
def cfg(tiny_coco) -> Config:
    """A detector's config on two categories, with everything right."""
    path, _, _ = tiny_coco
    dataset = {
        'type': 'CocoDataset',
        'data_root': str(path.parents[1]),
        'ann_file': 'annotations/instances_train2017.json',
        'data_prefix': {'img': 'train2017/'},
        'metainfo': {'classes': ('cat', 'dog')},
        'pipeline': [],
    }
    return Config(
        {
            'default_scope': 'mmdet',
            'model': {
                'type': 'mmitpn.DINO',
                'backbone': {'type': 'mmitpn.FastITPN', 'arch': 'nano'},
                'neck': {'type': 'mmitpn.ITPNPyramid', 'in_channels': (48, 96, 192), 'out_channels': 64, 'num_outs': 4},
                'bbox_head': {'type': 'DINOHead', 'num_classes': 2},
            },
            'train_dataloader': {'dataset': dataset},
            'val_dataloader': {'dataset': dataset},
            'val_evaluator': {'type': 'CocoMetric', 'ann_file': str(path)},
        }
    )


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


def cascade(*numbers: int, mask: int) -> dict:
    return {
        'type': 'CascadeRCNN',
        'rpn_head': {'type': 'RPNHead', 'num_classes': 1},
        'roi_head': {
            'type': 'CascadeRoIHead',
            'bbox_head': [{'type': 'Shared2FCBBoxHead', 'num_classes': number} for number in numbers],
            'mask_head': {'type': 'FCNMaskHead', 'num_classes': mask},
            'semantic_head': {'type': 'FusedSemanticHead', 'num_classes': 183},
        },
    }


def test_every_stage_of_a_cascade_counts(cfg):
    cfg.model = cascade(2, 2, 2, mask=2)
    assert check_config(cfg)
    cfg.model = cascade(2, 80, 2, mask=80)
    with pytest.raises(
        ValueError,
        match=r'roi_head.bbox_head\[1\].num_classes = 80; model.roi_head.mask_head.num_classes = 80; set every one',
    ):
        check_config(cfg)


def mask2former(things: int, stuff: int, weights: int) -> dict:
    numbers = {'num_things_classes': things, 'num_stuff_classes': stuff}
    loss = {'type': 'CrossEntropyLoss', 'class_weight': [1.0] * weights + [0.1]}
    return {
        'type': 'Mask2Former',
        'panoptic_head': {'type': 'Mask2FormerHead', **numbers, 'loss_cls': loss},
        'panoptic_fusion_head': {'type': 'MaskFormerFusionHead', **numbers},
    }


def test_things_and_stuff_count_together(cfg):
    cfg.model = mask2former(2, 0, 2)
    assert check_config(cfg)
    cfg.model = mask2former(80, 53, 133)
    with pytest.raises(ValueError, match=r'panoptic_head has num_things_classes = 80 and num_stuff_classes = 53'):
        check_config(cfg)
    cfg.model = mask2former(2, 0, 80)
    with pytest.raises(ValueError, match=r'class_weight has 81 numbers, but the head has 2 classes: it needs 3'):
        check_config(cfg)


def test_box_heads_of_a_panoptic_model_know_the_things_only(cfg):
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.metainfo = {
            'classes': ('cat', 'dog'),
            'thing_classes': ('cat',),
            'stuff_classes': ('dog',),
        }
    cfg.model = {**cascade(1, mask=1), **mask2former(1, 1, 2)}
    assert check_config(cfg)
    cfg.model = {**cascade(1, mask=1), **mask2former(2, 0, 2)}
    with pytest.raises(ValueError, match='1 thing and 1 stuff classes'):
        check_config(cfg)


def test_masks_and_stuff_that_a_head_learns_from_are_loaded(cfg):
    head = {'type': 'mmitpn.MaskDINOHead', 'num_things_classes': 2, 'num_stuff_classes': 0, 'box_start': 'mask2box'}
    cfg.model = {'type': 'mmitpn.MaskDINO', 'panoptic_head': head}
    assert check_config(cfg)  # a pipeline that does not tell
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
    cfg.train_dataloader.dataset.pipeline = pipeline
    with pytest.raises(ValueError, match=r"loads no masks, .*box_start='mask2box' .* set with_mask=True"):
        check_config(cfg)
    cfg.train_dataloader.dataset.pipeline[1].with_mask = True
    assert check_config(cfg)
    cfg.model.panoptic_head.update(num_things_classes=1, num_stuff_classes=1)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.metainfo.update(thing_classes=('cat',), stuff_classes=('dog',))
    with pytest.raises(ValueError, match=r'loads no map of stuff, but .* has num_stuff_classes=1'):
        check_config(cfg)
    cfg.train_dataloader.dataset.pipeline[1] = {'type': 'mmitpn.LoadPanopticAnnotations'}
    assert check_config(cfg)


def test_heads_differ_without_a_data_set():
    segmentor = {'decode_head': {'type': 'UPerHead', 'num_classes': 150}, 'auxiliary_head': {'num_classes': 19}}
    with pytest.raises(ValueError, match=r'decode_head.num_classes = 150; model.auxiliary_head.num_classes = 19'):
        check_config(Config({'model': segmentor}))
    segmentor['auxiliary_head']['num_classes'] = 150
    assert check_config(Config({'model': segmentor})) == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'neck.in_channels': (96, 192, 384)},
            r'neck.in_channels is \(96, 192, 384\), but the backbone gives .*\(48, 96, 192\)',
        ),
        ({'backbone.arch': 'base'}, r'the backbone gives maps of \(128, 256, 512\) channels: set in_channels='),
        ({'backbone.out_indices': (1, 2)}, r'the backbone gives maps of \(96, 192\) channels'),
        ({'backbone.out_indices': (0, 3)}, r'out_indices is \(0, 3\); it takes 0, 1 and 2'),
        ({'backbone.arch': 'huge'}, r"unknown arch 'huge'"),
        (
            {'rpn_head': {'type': 'RPNHead', 'in_channels': 256}},
            r'rpn_head.in_channels is 256, but model.neck gives .* 64',
        ),
        (
            {'roi_head': {'bbox_roi_extractor': {'type': 'SingleRoIExtractor', 'out_channels': 256}}},
            r'bbox_roi_extractor.out_channels is 256, but model.neck gives',
        ),
        (
            {'panoptic_head': {'in_channels': [256, 256, 256, 256]}},
            r'panoptic_head.in_channels is \(256, 256, 256, 256\), but model.neck gives maps of \(64, 64, 64, 64\)',
        ),
        ({'decode_head': {'in_channels': [64] * 5, 'in_index': [0, 1, 2, 3, 4]}}, r'but model.neck gives 4 maps'),
        ({'auxiliary_head': {'in_channels': 64, 'in_index': 4}}, r'in_index 4 is out of range'),
        (
            {'backbone': {'_delete_': True, 'type': 'mmitpn.FastITPN'}},
            r'gives maps of \(128, 256, 512\)',
        ),  # its default
        ({'backbone': {'_delete_': True, 'type': 'mmitpn.ITPN', 'arch': 'large'}}, r'gives maps of \(192, 384, 768\)'),
        (
            {'neck.concat_backbone': True, 'decode_head': {'in_channels': [64] * 4, 'in_index': [0, 1, 2, 3]}},
            r'set it to \(112, 160, 256, 256\)',
        ),
        (
            {'neck.concat_backbone': True, 'neck.start_level': 1, 'auxiliary_head': {'in_channels': 64, 'in_index': 0}},
            r'set it to 160',
        ),
        (
            {'neck.concat_backbone': True, 'neck.start_level': 3, 'auxiliary_head': {'in_channels': 64, 'in_index': 0}},
            r'set it to 256',
        ),
    ],
)
def test_channels_that_do_not_fit(cfg, options, message):
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


def test_channels_without_a_neck(cfg):
    del cfg.model['neck']
    cfg.model.decode_head = {'in_channels': [48, 96, 192], 'in_index': [0, 1, 2]}
    assert check_config(cfg)
    cfg.model.decode_head.in_channels = [48, 96, 384]
    with pytest.raises(ValueError, match=r'decode_head.in_channels is \(48, 96, 384\), but the backbone gives maps of'):
        check_config(cfg)


def test_arguments(cfg):
    with pytest.raises(TypeError, match=r'Config\.fromfile'):
        check_config('config.py')
    with pytest.raises(ValueError, match='splits must be some of'):
        check_config(cfg, splits='train')
    assert check_config(cfg, splits=('test',)) == []
