"""Images with label maps: one mistake at a time, what the metrics read, and labels as mmseg's pipeline makes them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image

from mmitpn.config_check import check_config
from mmitpn.config_check.semantic import check_semantic_config

pytest.importorskip('mmseg')
from mmcv.transforms import BaseTransform

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
LOADING = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]
ORIENTATION = 0x0112


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


# --- what mmseg's metrics read of an evaluated image ---


@pytest.fixture
def cfg(tmp_path) -> Config:
    for name in ('images', 'maps'):
        (tmp_path / name).mkdir()
    for index in range(2):
        Image.new('RGB', (8, 6)).save(tmp_path / 'images' / f'{index}.jpg')
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 2).save(tmp_path / 'maps' / f'{index}.png')
    dataset = {
        'type': 'BaseSegDataset',
        'data_root': str(tmp_path),
        'data_prefix': {'img_path': 'images', 'seg_map_path': 'maps'},
        'metainfo': {'classes': ('a', 'b')},
        'pipeline': [
            {'type': 'LoadImageFromFile'},
            {'type': 'Resize', 'scale': (8, 6)},
            {'type': 'LoadAnnotations'},
            {'type': 'PackSegInputs'},
        ],
    }
    cfg = {'default_scope': 'mmseg', 'model': {'type': 'EncoderDecoder'}}
    for split in ('val', 'test'):
        cfg |= {f'{split}_dataloader': {'dataset': dataset}, f'{split}_evaluator': {'type': 'IoUMetric'}}
    return Config(cfg)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_pipeline_without_label_maps(cfg, split):
    assert check_config(cfg, splits=[split]) == []
    del cfg[f'{split}_dataloader'].dataset.pipeline[2]
    with pytest.raises(ValueError, match=rf'{split}_dataloader.dataset.pipeline loads no label maps, but {split}_eval'):
        check_config(cfg, splits=[split])
    cfg[f'{split}_evaluator'].update(format_only=True, output_dir='out')  # the advice
    assert check_config(cfg, splits=[split]) == []


@pytest.mark.parametrize('split', ['val', 'test'])
def test_label_maps_that_are_not_there(cfg, tmp_path, split):
    (tmp_path / 'maps' / '1.png').unlink()
    with pytest.raises(ValueError, match=rf'{split}_dataloader.dataset: 1 missing label maps: .*1\.png'):
        check_config(cfg, splits=[split])
    cfg[f'{split}_dataloader'].dataset.data_prefix.seg_map_path = None
    del cfg[f'{split}_dataloader'].dataset.data_prefix['seg_map_path']
    with pytest.raises(ValueError, match='2 images without seg_map_path'):
        check_config(cfg, splits=[split])


def test_a_test_split_without_ground_truth_needs_none(cfg, tmp_path):
    for path in (tmp_path / 'maps').iterdir():
        path.unlink()
    del cfg.test_dataloader.dataset.pipeline[2]
    cfg.test_evaluator.update(format_only=True, output_dir='out')
    assert check_config(cfg, splits=['test']) == []


def test_augmented_evaluation_loads_label_maps_inside(cfg, tmp_path):
    inner = [[{'type': 'Resize', 'scale': (8, 6)}], [{'type': 'LoadAnnotations'}], [{'type': 'PackSegInputs'}]]
    cfg.test_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'TestTimeAug', 'transforms': inner}]
    assert check_config(cfg, splits=['test']) == []
    (tmp_path / 'maps' / '0.png').unlink()
    with pytest.raises(ValueError, match='1 missing label maps'):
        check_config(cfg, splits=['test'])


def test_names_of_the_classes(cfg):
    del cfg.val_dataloader.dataset['metainfo']
    with pytest.raises(ValueError, match=r'val_dataloader.dataset names no classes, which val_evaluator reads'):
        check_config(cfg, splits=['val'])


@pytest.mark.parametrize(
    ('evaluator', 'keys', 'message'),
    [
        ({'type': 'IoUMetric'}, ('img_path', 'img_shape'), "lacks 'ori_shape', which EncoderDecoder reads"),
        (
            {'type': 'IoUMetric', 'output_dir': 'x'},
            ('ori_shape', 'img_shape'),
            "lacks 'img_path', which IoUMetric reads",
        ),
        (
            {'type': 'CityscapesMetric', 'output_dir': 'x'},
            ('ori_shape', 'img_shape', 'img_path'),
            "lacks 'seg_map_path', which CityscapesMetric reads",
        ),
    ],
)
def test_fields_that_are_not_packed(cfg, evaluator, keys, message):
    cfg.val_evaluator = evaluator
    assert check_config(cfg, splits=['val']) == []
    cfg.val_dataloader.dataset.pipeline[3].meta_keys = keys
    with pytest.raises(ValueError, match=rf'pipeline\[3\].meta_keys {message}'):
        check_config(cfg, splits=['val'])


# --- labels as the pipeline loads them ---


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
