"""The checker of label maps sees what mmseg's pipeline makes of the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image

from mmitpn.config_check import check_config
from mmitpn.config_check.semantic_config import check_semantic_config

pytest.importorskip('mmseg')
from mmcv.transforms import BaseTransform

LOADING = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]
ORIENTATION = 0x0112


@TRANSFORMS.register_module(force=True)
class ForegroundIsOne(BaseTransform):
    """A user's own transform that changes labels."""

    def transform(self, results):
        results['gt_seg_map'][results['gt_seg_map'] == 255] = 1
        return results


@TRANSFORMS.register_module(force=True)
class LoadColors(BaseTransform):
    """A user's own loader: red is class 0, anything else class 1."""

    def transform(self, results):
        colors = np.asarray(Image.open(results['seg_map_path']))
        results['gt_seg_map'] = (colors[..., 0] != 255).astype(np.uint8)
        results['seg_fields'].append('gt_seg_map')
        return results


def write(root: Path, maps: list[np.ndarray], *, orientation: int | None = None, size: tuple[int, int] = (8, 6)):
    """Images (JPEG, width and height ``size``) with label maps."""
    for name in ('images', 'maps'):
        (root / name).mkdir(exist_ok=True)
    for index, labels in enumerate(maps):
        image = Image.new('RGB', size, (index, 90, 40))
        exif = image.getexif()
        if orientation is not None:
            exif[ORIENTATION] = orientation
        image.save(root / 'images' / f'{index}.jpg', exif=exif)
        Image.fromarray(labels).save(root / 'maps' / f'{index}.png')


def config(root: Path, kind: str = 'BaseSegDataset', pipeline=LOADING, **settings) -> Config:
    dataset = {
        'type': kind,
        'data_root': str(root),
        'data_prefix': {'img_path': 'images', 'seg_map_path': 'maps'},
        'pipeline': pipeline,
        **settings,
    }
    return Config({'default_scope': 'mmseg', 'train_dataloader': {'dataset': dataset}})


def of_mmseg(cfg: Config) -> dict[int, int]:
    """Pixels of each label as the built dataset's own pipeline loads them."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    found, counts = np.unique(
        np.stack([dataset[index]['gt_seg_map'] for index in range(len(dataset))]), return_counts=True
    )
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def maps_of(values: list[int], number: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.choice(np.array(values, np.uint8), size=(6, 8)) for _ in range(number)]


@pytest.mark.parametrize(
    ('kind', 'settings', 'values'),
    [
        ('ADE20KDataset', {'metainfo': {'classes': ('wall', 'sky')}}, [0, 1, 3, 150]),
        ('ADE20KDataset', {'metainfo': {'classes': ('sky', 'wall')}}, [0, 1, 3]),
        ('ADE20KDataset', {'metainfo': {'classes': ('flag', 'wall', 'tree')}}, [0, 1, 5, 150, 255]),
        ('ADE20KDataset', {}, [0, 1, 77, 150]),
        ('CityscapesDataset', {'metainfo': {'classes': ('car', 'road')}, 'img_suffix': '.jpg'}, [0, 13, 5, 255]),
        ('BaseSegDataset', {'metainfo': {'classes': ('a', 'b', 'c')}, 'reduce_zero_label': True}, [0, 1, 2, 3, 255]),
        ('BaseSegDataset', {'metainfo': {'classes': ('a', 'b', 'c')}}, [0, 1, 2, 255]),
    ],
)
def test_counts_are_those_of_the_framework(tmp_path, kind, settings, values):
    write(tmp_path, maps_of(values))
    cfg = config(tmp_path, kind, seg_map_suffix='.png', **settings)
    (summary,) = check_semantic_config(cfg, splits=['train'])
    wanted = of_mmseg(cfg)
    assert dict(summary.loaded) == wanted
    assert summary.problems == {}
    assert summary.pixels.tolist() == [wanted.get(label, 0) for label in range(len(summary.classes))]
    assert summary.ignored == wanted[255] > 0
    assert check_config(cfg, splits=['train']) == []


def test_a_value_that_no_class_of_the_type_has(tmp_path):
    write(tmp_path, maps_of([1, 3, 200]))
    cfg = config(tmp_path, 'ADE20KDataset', metainfo={'classes': ('wall', 'sky')})
    assert 199 in of_mmseg(cfg)
    with pytest.raises(
        ValueError, match=r'of the 150 that the type of the dataset has.*200 \(loaded as 199\) in 3 map'
    ):
        check_config(cfg, splits=['train'])


def test_classes_that_no_map_shows_leave_nothing_to_train_on(tmp_path):
    write(tmp_path, maps_of([1, 3, 150]))
    cfg = config(tmp_path, 'ADE20KDataset', metainfo={'classes': ('lake', 'tree')})
    assert set(of_mmseg(cfg)) == {255}
    with pytest.raises(
        ValueError, match=r"every pixel .* is ignored \(the files hold 1, 3, 150\).*'lake', 'tree'.*name cl"
    ):
        check_config(cfg, splits=['train'])
    cfg.train_dataloader.dataset.metainfo.classes = ('tree', 'sky')  # the advice
    assert any('one of 2 classes' in text for text in check_semantic_config(cfg, splits=['train'])[0].sentences())
    cfg.train_dataloader.dataset.metainfo.classes = ('wall', 'sky')
    assert check_config(cfg, splits=['train']) == []


def test_a_rare_class_beyond_the_sample_is_found(tmp_path):
    maps = [np.full((6, 8), 150, np.uint8) for _ in range(30)]
    maps[17][0, 0], maps[18][0, 0] = 1, 3
    write(tmp_path, maps)
    cfg = config(tmp_path, 'ADE20KDataset', metainfo={'classes': ('wall', 'sky')})
    assert check_config(cfg, splits=['train'], sample_images=2) == []
    maps[17][0, 0] = 150
    write(tmp_path, maps)
    with pytest.raises(ValueError, match="every pixel of all label maps is 'sky' or ignored"):
        check_config(cfg, splits=['train'], sample_images=2)


def test_own_transforms_that_change_labels_are_called(tmp_path):
    write(tmp_path, maps_of([0, 255]))
    names = {'classes': ('a', 'b')}
    with pytest.raises(ValueError, match='0 and 255 only'):
        check_config(config(tmp_path, metainfo=names), splits=['train'])
    cfg = config(tmp_path, pipeline=[*LOADING, {'type': 'ForegroundIsOne'}], metainfo=names)
    (summary,) = check_semantic_config(cfg, splits=['train'])
    assert (summary.problems, set(summary.loaded)) == ({}, {0, 1})
    assert check_config(cfg, splits=['train']) == []


def test_own_loaders_are_called(tmp_path):
    rng = np.random.default_rng(1)
    write(tmp_path, [rng.choice(np.array([0, 255], np.uint8), size=(6, 8, 3)) for _ in range(2)])
    cfg = config(tmp_path, pipeline=[LOADING[0], {'type': 'LoadColors'}], metainfo={'classes': ('red', 'other')})
    (summary,) = check_semantic_config(cfg, splits=['train'])
    red = sum(int((np.asarray(Image.open(tmp_path / 'maps' / f'{i}.png'))[..., 0] == 255).sum()) for i in range(2))
    assert summary.pixels.tolist() == [red, 96 - red]
    cfg.train_dataloader.dataset.metainfo.classes = ('red',)
    with pytest.raises(ValueError, match=r'label values without a class .*1 in 2 map'):
        check_config(cfg, splits=['train'])


@pytest.mark.parametrize('value', [True, False])
def test_two_settings_of_reduce_zero_label_that_disagree(tmp_path, value):
    write(tmp_path, maps_of([0, 1, 2]))
    loading = [LOADING[0], {'type': 'LoadAnnotations', 'reduce_zero_label': value}]
    cfg = config(tmp_path, pipeline=loading, metainfo={'classes': ('a', 'b', 'c')}, reduce_zero_label=not value)
    with pytest.raises(AssertionError, match='reduce_zero_label'):
        of_mmseg(cfg)
    with pytest.raises(ValueError, match=rf'dataset.reduce_zero_label is {not value}, but LoadAnnotations .*={value}'):
        check_config(cfg, splits=['train'])
    del cfg.train_dataloader.dataset.pipeline[1]['reduce_zero_label']  # the advice
    cfg.train_dataloader.dataset.reduce_zero_label = False
    assert check_config(cfg, splits=['train']) == []
    assert of_mmseg(cfg).keys() == {0, 1, 2}


def test_two_settings_that_disagree_by_default(tmp_path):
    write(tmp_path, maps_of([0, 1, 2]))
    loading = [LOADING[0], {'type': 'LoadAnnotations', 'reduce_zero_label': False}]
    with pytest.raises(ValueError, match='reduce_zero_label is True, the default of ADE20KDataset, but LoadAnn'):
        check_config(config(tmp_path, 'ADE20KDataset', pipeline=loading), splits=['train'])


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_sizes_are_those_of_the_loaded_image(tmp_path, orientation):
    upright = [np.array(labels.T) for labels in maps_of([0, 1])]
    write(tmp_path, upright, orientation=orientation)  # 8x6 stored, 6x8 loaded
    cfg = config(tmp_path, metainfo={'classes': ('a', 'b')})
    assert check_config(cfg, splits=['train']) == []
    write(tmp_path, maps_of([0, 1]), orientation=orientation)
    with pytest.raises(ValueError, match=r'3 label maps made for images as they are stored.*\(8x6, the image 6x8\)'):
        check_config(cfg, splits=['train'])
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'  # the advice
    assert check_config(cfg, splits=['train']) == []
    with DefaultScope.overwrite_default_scope('mmseg'):
        loaded = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert loaded['img'].shape[:2] == loaded['gt_seg_map'].shape == (6, 8)


def test_images_whose_size_does_not_tell_are_a_warning(tmp_path):
    write(tmp_path, maps_of([0, 1]), orientation=3)
    (summary,) = check_semantic_config(config(tmp_path, metainfo={'classes': ('a', 'b')}), splits=['train'])
    assert summary.problems == {}
    assert summary.warnings[0].startswith('3 images are turned or mirrored by their EXIF orientation')


def test_another_ignored_label(tmp_path):
    write(tmp_path, maps_of([0, 1, 9]))
    cfg = config(tmp_path, metainfo={'classes': ('a', 'b')})
    with pytest.raises(ValueError, match='9 in 3 map'):
        check_config(cfg, splits=['train'])
    cfg.model = {'decode_head': {'type': 'FCNHead', 'num_classes': 2, 'ignore_index': 9}}
    assert check_config(cfg, splits=['train']) == []
