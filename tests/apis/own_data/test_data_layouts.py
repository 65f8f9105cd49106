"""Each layout is recognized and gives the same annotations; what does not fit is one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmitpn.apis.data_layouts import read_own_data, split_off_validation, write_own_data
from mmitpn.apis.label_map_layouts import read_stored_map
from mmitpn.commands import data as data_command

YAML = 'names: [bird, cat, dog]\n'


def content_of(data, split='train'):
    """What the annotations of a split say, whatever the folder of the images: in the order of the file."""
    found = data.splits[split].content
    names = {one['id']: Path(one['file_name']).name for one in found['images']}
    labels = {one['id']: one['name'] for one in found['categories']}
    objects = [(names[one['image_id']], labels[one['category_id']], one['bbox']) for one in found['annotations']]
    return list(names.values()), objects


def write_instances(layout: str, root: Path, layouts) -> None:
    """The layouts of boxes: two images to train on and two to validate on, as each tool writes them."""
    parts = {'train': layouts.samples[:2], 'val': layouts.samples[2:]}
    for split, samples in parts.items():
        roboflow = root / {'train': 'train', 'val': 'valid'}[split]
        if layout == 'coco':
            layouts.coco(root / f'annotations/my_{split}.json', root / f'photos/{split}', samples)
        elif layout == 'coco, images beside':
            layouts.coco(root / f'{split}.json', root, samples)
        elif layout == 'coco of Roboflow':
            layouts.coco(roboflow / '_annotations.coco.json', roboflow, samples, group=True)
        elif layout == 'yolo of Ultralytics':
            layouts.yolo(root / f'images/{split}', root / f'labels/{split}', samples)
            (root / 'data.yaml').write_text(
                'path: .\ntrain: images/train\nval: images/val\nnames: {0: bird, 1: cat, 2: dog}'
            )
        elif layout == 'yolo of Roboflow':
            layouts.yolo(roboflow / 'images', roboflow / 'labels', samples)
            folders = 'train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 3\n'
            (root / 'data.yaml').write_text(folders + YAML)
        elif layout == 'yolo of supervision':  # names only
            layouts.yolo(roboflow / 'images', roboflow / 'labels', samples)
            (root / 'data.yaml').write_text('nc: 3\n' + YAML)
        elif layout == 'yolo without yaml':
            layouts.yolo(root / f'images/{split}', root / f'labels/{split}', samples)
            (root / 'classes.txt').write_text('bird\ncat\ndog\n')
        elif layout == 'voc':
            layouts.voc(root / 'JPEGImages', root / 'Annotations', samples)
            (root / 'ImageSets/Main').mkdir(parents=True, exist_ok=True)
            (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(name for name, *_ in samples))
        else:
            layouts.voc(roboflow, roboflow, samples)


INSTANCES = {
    'coco': 'COCO',
    'coco, images beside': 'COCO',
    'coco of Roboflow': 'COCO',
    'yolo of Ultralytics': 'YOLO',
    'yolo of Roboflow': 'YOLO',
    'yolo of supervision': 'YOLO',
    'yolo without yaml': 'YOLO',
    'voc': 'Pascal VOC',
    'voc of Roboflow': 'Pascal VOC',
}


@pytest.mark.parametrize('layout', INSTANCES)
def test_boxes_are_the_same_in_each_layout(layout, tmp_path, layouts):
    write_instances(layout, tmp_path, layouts)
    data = read_own_data(tmp_path)
    assert (data.layout, data.classes) == (INSTANCES[layout], layouts.classes)
    names, objects = content_of(data)
    assert names == ['a.jpg', 'b.jpg']
    assert objects == [
        ('a.jpg', 'cat', [7, 3, 12, 30]),
        ('b.jpg', 'dog', [4, 5, 20, 11]),
        ('b.jpg', 'bird', [0, 0, 48, 32]),
    ]
    assert [len(part) for part in content_of(data, 'val')] == [2, 2]
    train = data.splits['train']
    assert all((train.images / one['file_name']).is_file() for one in train.content['images'])
    assert '| train |      2 |       3 |     0 |            0 |' in data.table()
    assert any('animals' in note for note in data.notes) == (layout == 'coco of Roboflow')


@pytest.mark.parametrize('layout', ['cvat', 'beside', 'yolo', 'yolo in one folder', 'voc'])
def test_data_without_splits(layout, tmp_path, layouts):
    samples = layouts.samples
    if layout == 'cvat':
        layouts.coco(tmp_path / 'annotations/instances_default.json', tmp_path / 'images/default', samples)
    elif layout == 'beside':
        layouts.coco(tmp_path / 'labels.json', tmp_path, samples)
    elif layout == 'yolo':
        layouts.yolo(tmp_path / 'images', tmp_path / 'labels', samples)
    elif layout == 'yolo in one folder':
        layouts.yolo(tmp_path / 'all', tmp_path / 'all', samples)
        (tmp_path / 'data.yaml').write_text(f'train: all\n{YAML}')
    else:
        layouts.voc(tmp_path / 'JPEGImages', tmp_path / 'Annotations', samples)
    data = read_own_data(tmp_path, classes=layouts.classes)
    assert list(data.splits) == ['train']
    assert [len(part) for part in content_of(data)] == [4, 5]
    parted = split_off_validation(data, fraction=0.5, seed=3)
    again = split_off_validation(data, fraction=0.5, seed=3)
    assert content_of(parted) == content_of(again)
    names = content_of(parted)[0] + content_of(parted, 'val')[0]
    assert sorted(names) == ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg']
    assert parted.notes[-1] == 'no validation set: 2 of 4 training images are held out, drawn with seed 3'


def test_the_split_is_the_same_in_each_layout(tmp_path, layouts):
    layouts.coco(tmp_path / 'c/x.json', tmp_path / 'c', layouts.samples)
    layouts.yolo(tmp_path / 'y/images', tmp_path / 'y/labels', layouts.samples)
    layouts.voc(tmp_path / 'v/JPEGImages', tmp_path / 'v/Annotations', layouts.samples)
    found = [split_off_validation(read_own_data(tmp_path / name, classes=layouts.classes), seed=1) for name in 'cyv']
    held_out = [content_of(data, 'val')[0] for data in found]
    assert held_out[0] == held_out[1] == held_out[2]
    assert len(held_out[0]) == 1


def test_a_coco_file_is_used_as_it_is(tmp_path, layouts):
    layouts.coco(tmp_path / 'annotations/instances_train2017.json', tmp_path / 'train2017', layouts.samples)
    (tmp_path / 'annotations/panoptic_train2017.json').write_text('{}')
    split = write_own_data(read_own_data(tmp_path), tmp_path / 'work').splits['train']
    assert split.ann_file == tmp_path / 'annotations/instances_train2017.json'
    assert not (tmp_path / 'work').exists()


def test_coco_categories_that_differ_between_splits_are_aligned(tmp_path, layouts):
    write_instances('coco', tmp_path, layouts)
    path = tmp_path / 'annotations/my_val.json'
    content = json.loads(path.read_text())
    content['categories'] = [{'id': 9, 'name': 'cat'}, {'id': 4, 'name': 'bird'}]  # no dog, other ids
    for one in content['annotations']:
        one['category_id'] = {1: 4, 2: 9}[one['category_id']]
    path.write_text(json.dumps(content))
    data = read_own_data(tmp_path)
    assert data.classes == layouts.classes
    assert content_of(data, 'val')[1] == [('d.jpg', 'bird', [10, 10, 3, 7]), ('d.jpg', 'cat', [30, 20, 34, 28])]
    assert [one['id'] for one in data.splits['val'].content['categories']] == [1, 2, 3]
    assert data.splits['train'].ann_file is not None
    assert data.splits['val'].ann_file is None


def test_images_that_are_trained_on_and_evaluated_are_named(tmp_path, layouts):
    layouts.yolo(tmp_path / 'images', tmp_path / 'labels', layouts.samples)
    (tmp_path / 'data.yaml').write_text('train: images\nval: images\n' + YAML)
    assert '4 of the 4 val images are also in train' in read_own_data(tmp_path).describe()


def test_polygons_of_yolo_are_masks(tmp_path, layouts):
    layouts.yolo(tmp_path / 'images/train', tmp_path / 'labels/train', layouts.samples, masks=True)
    data = read_own_data(tmp_path, classes=layouts.classes)
    assert data.has_masks
    first = data.splits['train'].content['annotations'][0]
    assert first['segmentation'] == [[7, 3, 19, 3, 7, 33]]
    assert first['bbox'] == [7, 3, 12, 30]
    assert 150 < first['area'] < 210  # of the triangle, not of its box


def test_polygons_of_voc_are_masks(tmp_path, layouts):
    layouts.voc(tmp_path / 'JPEGImages', tmp_path / 'Annotations', layouts.samples)
    path = tmp_path / 'Annotations/a.xml'
    points = ''.join(
        f'<{"xy"[i % 2]}{i // 2 + 1}>{one + 1}</{"xy"[i % 2]}{i // 2 + 1}>'
        for i, one in enumerate(layouts.outline((7, 3, 12, 30)))
    )
    path.write_text(path.read_text().replace('</object>', f'<polygon>{points}</polygon></object>'))
    found = read_own_data(tmp_path).splits['train']
    assert found.num_masks == 1
    assert found.content['annotations'][0]['segmentation'] == [[7, 3, 19, 3, 7, 33]]


def test_an_image_turned_by_its_header(tmp_path, layouts):
    layouts.yolo(tmp_path / 'images', tmp_path / 'labels', [('a', (20, 40), [(0, (2, 4, 10, 20))])])
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    Image.new('RGB', (40, 20)).save(tmp_path / 'images/a.jpg', exif=exif)
    content = read_own_data(tmp_path, classes=layouts.classes).splits['train'].content
    assert (content['images'][0]['width'], content['images'][0]['height']) == (20, 40)
    assert content['annotations'][0]['bbox'] == [2, 4, 10, 20]


# --- label maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', ['masks', 'ade20k', 'splits first', 'roboflow', 'one folder'])
def test_label_maps(layout, tmp_path, layouts):
    parts = {'train': layouts.samples[:2], 'val': layouts.samples[2:]}
    for split, samples in parts.items():
        if layout == 'masks':
            layouts.maps(tmp_path / f'images/{split}', tmp_path / f'masks/{split}', samples)
        elif layout == 'ade20k':
            folder = {'train': 'training', 'val': 'validation'}[split]
            layouts.maps(tmp_path / f'images/{folder}', tmp_path / f'annotations/{folder}', samples)
        elif layout == 'splits first':
            layouts.maps(tmp_path / f'{split}/images', tmp_path / f'{split}/labels', samples)
        elif layout == 'roboflow':
            folder = tmp_path / {'train': 'train', 'val': 'valid'}[split]
            layouts.maps(folder, folder, samples, suffix='_mask.png')
            (folder / '_classes.csv').write_text('Pixel Value, Class\n0, bird\n1, cat\n2, dog\n')
        else:
            layouts.maps(tmp_path / 'images', tmp_path / 'masks', samples)
    if layout != 'roboflow':
        (tmp_path / 'classes.txt').write_text('bird\ncat\ndog\n')
    data = read_own_data(tmp_path)
    assert (data.task, data.classes, data.reduce_zero_label) == ('semantic', layouts.classes, False)
    if layout == 'one folder':
        assert list(data.splits) == ['train']
        data = split_off_validation(data, fraction=0.5)
    assert {split: one.num_images for split, one in data.splits.items()} == {'train': 2, 'val': 2}
    work = tmp_path / 'work'
    train = write_own_data(data, work).splits['train']
    assert all(train.map_of(name).is_file() for name in train.names)
    listed = layout in ('one folder', 'roboflow')
    assert (work / 'train.txt').is_file() == listed
    if listed:
        assert (work / 'train.txt').read_text().split() == list(train.names)


def test_colors_of_cvat_become_labels(tmp_path, layouts):
    layouts.images(tmp_path / 'JPEGImages', layouts.samples)
    (tmp_path / 'SegmentationClass').mkdir()
    colors = np.array([[0, 0, 0], [250, 50, 83], [51, 221, 255]], dtype=np.uint8)
    for name, size, _ in layouts.samples:
        Image.fromarray(colors[layouts.label_map(size, (0, 1, 2))]).save(tmp_path / f'SegmentationClass/{name}.png')
    lines = ['# label:color_rgb:parts:actions', 'background:0,0,0::', 'cat:250,50,83::', 'dog:51,221,255::']
    (tmp_path / 'labelmap.txt').write_text('\n'.join(lines))
    (tmp_path / 'ImageSets/Segmentation').mkdir(parents=True)
    (tmp_path / 'ImageSets/Segmentation/train.txt').write_text('a\nb\nc\n')
    (tmp_path / 'ImageSets/Segmentation/val.txt').write_text('d\n')
    data = read_own_data(tmp_path)
    assert data.classes == ('background', 'cat', 'dog')
    assert data.palette == ((0, 0, 0), (250, 50, 83), (51, 221, 255))
    val = write_own_data(data, tmp_path / 'work').splits['val']
    assert val.names == ('d',)
    np.testing.assert_array_equal(read_stored_map(val.map_of('d')), layouts.label_map((64, 48), (0, 1, 2)))
    (tmp_path / 'labelmap.txt').write_text('\n'.join(lines[:-1]))
    with pytest.raises(ValueError, match=r'labelmap.txt does not name: .\(51, 221, 255\)'):
        read_own_data(tmp_path)
    (tmp_path / 'labelmap.txt').unlink()
    with pytest.raises(ValueError, match=r'color images; add labelmap\.txt'):
        read_own_data(tmp_path)


def test_black_and_white_masks(tmp_path, layouts):
    layouts.maps(tmp_path / 'images', tmp_path / 'masks', layouts.samples, (0, 255))
    data = read_own_data(tmp_path, classes=('crack',))
    assert data.classes == ('background', 'crack')
    train = write_own_data(data, tmp_path / 'work').splits['train']
    assert np.unique(read_stored_map(train.map_of('a'))).tolist() == [0, 1]


def test_classes_that_no_file_names_are_counted(tmp_path, layouts):
    layouts.maps(tmp_path / 'images', tmp_path / 'masks', layouts.samples, (0, 3, 255))
    data = read_own_data(tmp_path)
    assert data.classes == ('class_0', 'class_1', 'class_2', 'class_3')
    assert 'give --classes NAME NAME' in data.notes[0]


def test_ade20k_itself(tmp_path, layouts):
    root = tmp_path / 'ADEChallengeData2016'
    layouts.maps(root / 'images/training', root / 'annotations/training', layouts.samples, (0, 1, 150))
    data = read_own_data(root)
    assert (len(data.classes), data.classes[0], data.reduce_zero_label) == (150, 'wall', True)


def test_label_0_is_no_class_where_labels_start_at_1(tmp_path, layouts):
    layouts.maps(tmp_path / 'images', tmp_path / 'masks', layouts.samples, (0, 1, 2))
    data = read_own_data(tmp_path, classes=('cat', 'dog'))
    assert data.reduce_zero_label
    assert 'label 0 is no class' in data.notes[0]
    with pytest.raises(ValueError, match=r'have the labels 1, 2, but there are 1 classes: 0 to 0'):
        read_own_data(tmp_path, classes=('cat',))


# --- what does not fit -----------------------------------------------------------------------------------------------


def no_layout(root, layouts):
    layouts.images(root / 'holiday', layouts.samples)


def two_layouts(root, layouts):
    layouts.yolo(root / 'images', root / 'labels', layouts.samples)
    layouts.voc(root / 'images', root / 'Annotations', layouts.samples)


def one_folder_above(root, layouts):
    layouts.coco(root / 'my_set/train.json', root / 'my_set', layouts.samples)


def no_names(root, layouts):
    layouts.yolo(root / 'images', root / 'labels', layouts.samples)


def no_names_in_yaml(root, layouts):
    layouts.yolo(root / 'images', root / 'labels', layouts.samples)
    (root / 'data.yaml').write_text('train: images\nnc: 3\n')


def no_categories(root, layouts):
    layouts.coco(root / 'train.json', root, layouts.samples)
    (root / 'train.json').write_text(json.dumps({'images': [], 'annotations': [], 'categories': []}))


def no_objects_in_voc(root, layouts):
    layouts.voc(root / 'JPEGImages', root / 'Annotations', layouts.samples[2:3])


def empty_validation(root, layouts):
    layouts.yolo(root / 'images/train', root / 'labels/train', layouts.samples)
    (root / 'images/val').mkdir()
    (root / 'data.yaml').write_text(f'train: images/train\nval: images/val\n{YAML}')


def validation_without_objects(root, layouts):
    layouts.yolo(root / 'train/images', root / 'train/labels', layouts.samples)
    layouts.yolo(root / 'valid/images', root / 'valid/labels', layouts.samples[2:3])
    (root / 'data.yaml').write_text(f'train: train/images\nval: valid/images\n{YAML}')


def label_without_image(root, layouts):
    layouts.yolo(root / 'images', root / 'labels', layouts.samples)
    (root / 'images/a.jpg').unlink()
    (root / 'data.yaml').write_text(f'train: images\n{YAML}')


def class_out_of_range(root, layouts):
    layouts.yolo(root / 'images', root / 'labels', layouts.samples)
    (root / 'labels/a.txt').write_text('3 0.5 0.5 0.1 0.1\n')
    (root / 'data.yaml').write_text(f'train: images\n{YAML}')


def broken_label(root, layouts):
    layouts.yolo(root / 'images', root / 'labels', layouts.samples)
    (root / 'labels/a.txt').write_text('0 0.5 0.5\n')
    (root / 'data.yaml').write_text(f'train: images\n{YAML}')


def broken_yaml(root, layouts):
    layouts.yolo(root / 'images', root / 'labels', layouts.samples)
    (root / 'data.yaml').write_text('names: [cat, dog')


def broken_json(root, layouts):
    layouts.coco(root / 'annotations/train.json', root / 'train', layouts.samples)
    (root / 'annotations/train.json').write_text('{"images": [')


def broken_xml(root, layouts):
    layouts.voc(root / 'JPEGImages', root / 'Annotations', layouts.samples)
    (root / 'Annotations/b.xml').write_text('<annotation><object>')


def box_without_number(root, layouts):
    layouts.voc(root / 'JPEGImages', root / 'Annotations', layouts.samples)
    path = root / 'Annotations/b.xml'
    path.write_text(path.read_text().replace('<xmin>5</xmin>', '<xmin>left</xmin>'))


def broken_image(root, layouts):
    layouts.voc(root / 'JPEGImages', root / 'Annotations', layouts.samples)
    (root / 'JPEGImages/b.jpg').write_bytes(b'no image')


def coco_without_images(root, layouts):
    layouts.coco(root / 'annotations/train.json', root / 'train', layouts.samples)
    for path in (root / 'train').iterdir():
        path.unlink()


def two_files_of_a_split(root, layouts):
    layouts.coco(root / 'annotations/train_a.json', root / 'train', layouts.samples)
    layouts.coco(root / 'annotations/train_b.json', root / 'train', layouts.samples)


def category_of_one_split(root, layouts):
    layouts.coco(root / 'train.json', root, layouts.samples)
    layouts.coco(root / 'val.json', root, layouts.samples)
    path = root / 'val.json'
    path.write_text(path.read_text().replace('"dog"', '"dogs"'))


def name_of_no_image(root, layouts):
    layouts.voc(root / 'JPEGImages', root / 'Annotations', layouts.samples)
    (root / 'ImageSets/Main').mkdir(parents=True)
    (root / 'ImageSets/Main/train.txt').write_text('a\nzebra\n')


def no_training_split(root, layouts):
    layouts.voc(root / 'valid', root / 'valid', layouts.samples)


def map_is_missing(root, layouts):
    layouts.maps(root / 'images', root / 'masks', layouts.samples)
    (root / 'masks/b.png').unlink()


def map_without_image(root, layouts):
    layouts.maps(root / 'images', root / 'masks', layouts.samples)
    (root / 'images/b.jpg').unlink()


def map_is_broken(root, layouts):
    layouts.maps(root / 'images', root / 'masks', layouts.samples)
    (root / 'masks/b.png').write_bytes(b'no image')


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (no_layout, r'has none of the layouts COCO, YOLO, Pascal VOC, .* \(it holds holiday/\)'),
        (one_folder_above, r'has none of the layouts .* \(it holds my_set/\); give its folder my_set'),
        (two_layouts, r'has several layouts: YOLO, Pascal VOC; keep the files of one'),
        (no_names, r'no classes found in .*: it has no data.yaml with names, or classes.txt; .*--classes'),
        (no_names_in_yaml, r'data.yaml names no classes \(names is None\)'),
        (no_categories, r'train.json has no categories, so there is no class to learn'),
        (no_objects_in_voc, r'no classes found in .*no objects in the XML files'),
        (empty_validation, r'the val split of .* is empty: it has no image'),
        (validation_without_objects, r'the val split of .* is empty: none of its 1 images has an object'),
        (label_without_image, r"1 files of .*labels have no image in .*images: 'a.txt'"),
        (class_out_of_range, r"a.txt has the class 3, but there are 3 classes, 0 to 2 \('bird', 'cat', 'dog'\)"),
        (broken_label, r'a.txt is not a label file of YOLO: .*at least 5 tokens'),
        (broken_yaml, r'data.yaml is broken: '),
        (broken_json, r'train.json is broken: '),
        (broken_xml, r'b.xml is not an annotation file of Pascal VOC: no element found'),
        (box_without_number, r"b.xml is not an annotation file of Pascal VOC: Invalid 'xmin' value 'left'"),
        (broken_image, r'b.jpg cannot be read as an image'),
        (coco_without_images, r"no folder in .* has the images of .*train.json \(looked for 'a.jpg'"),
        (two_files_of_a_split, r'train_a.json.*train_b.json.* are all COCO files for train'),
        (category_of_one_split, r"objects of the category 'dogs', which .*train.json .*\(did you mean 'dog'\?\)"),
        (name_of_no_image, r"train.txt names 1 images that are not there: 'zebra'"),
        (no_training_split, r'has no training split \(found: val\)'),
        (map_is_missing, r"1 of 4 images in .*images have no label map NAME.png in .*masks: 'b.jpg'"),
        (map_without_image, r"1 label maps in .*masks have no image in .*images: 'b.png'"),
        (map_is_broken, r'b.png is not a readable label map'),
    ],
    ids=lambda value: value.__name__ if callable(value) else '',
)
def test_data_that_do_not_fit(write, message, tmp_path, layouts, capsys):
    write(tmp_path, layouts)
    assert data_command.main(['inspect', str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line


def test_classes_that_the_data_do_not_have(tmp_path, layouts):
    layouts.coco(tmp_path / 'train.json', tmp_path, layouts.samples)
    assert read_own_data(tmp_path, classes=('dog', 'cat', 'bird')).classes == ('dog', 'cat', 'bird')
    with pytest.raises(ValueError, match=r"'birds', but .*train.json has no such class \(did you mean 'bird'\?\)"):
        read_own_data(tmp_path, classes=('birds', 'cat', 'dog'))
    with pytest.raises(ValueError, match=r"leaves out 'dog'"):
        read_own_data(tmp_path, classes=('bird', 'cat'))


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere' for --data"):
        read_own_data(tmp_path / 'nowhere')


@pytest.mark.parametrize(
    ('options', 'message'), [({'fraction': 1.5}, 'give a number between 0 and 1'), ({'fraction': 0.0}, 'between 0')]
)
def test_fractions_that_are_none(options, message, tmp_path, layouts):
    layouts.coco(tmp_path / 'x.json', tmp_path, layouts.samples)
    with pytest.raises(ValueError, match=message):
        split_off_validation(read_own_data(tmp_path), **options)


def test_a_fraction_where_there_is_a_validation_set(tmp_path, layouts):
    write_instances('coco', tmp_path, layouts)
    data = read_own_data(tmp_path)
    assert split_off_validation(data) is data
    with pytest.raises(ValueError, match=r'is for data without a validation set, but .* has one of 2 images'):
        split_off_validation(data, fraction=0.2)


# --- mmitpn data -----------------------------------------------------------------------------------------------------


def test_convert_to_coco(tmp_path, layouts, capsys):
    write_instances('voc', tmp_path / 'voc', layouts)
    assert data_command.main(['convert', str(tmp_path / 'voc'), str(tmp_path / 'coco')]) == 0
    assert 'Pascal VOC, 3 classes: bird, cat, dog' in capsys.readouterr().out
    data, old = read_own_data(tmp_path / 'coco'), read_own_data(tmp_path / 'voc')
    assert data.layout == 'COCO'
    assert [content_of(data, split) for split in ('train', 'val')] == [
        content_of(old, split) for split in ('train', 'val')
    ]
    assert data_command.main(['convert', str(tmp_path / 'voc'), str(tmp_path / 'coco')]) == 2
    assert 'is not an empty folder; give a new or empty folder' in capsys.readouterr().err


def test_convert_label_maps(tmp_path, layouts):
    layouts.maps(tmp_path / 'in/images', tmp_path / 'in/masks', layouts.samples, (0, 255))
    arguments = ['convert', str(tmp_path / 'in'), str(tmp_path / 'out'), '--val-fraction', '0.5', '--classes', 'crack']
    assert data_command.main(arguments) == 0
    data = read_own_data(tmp_path / 'out')
    assert data.classes == ('background', 'crack')
    assert {split: one.num_images for split, one in data.splits.items()} == {'train': 2, 'val': 2}
    assert data.new_labels is None


def test_shapes_and_check_are_commands(tmp_path, capsys):
    out = ['--out', str(tmp_path / 's'), '--num-train', '1', '--num-val', '1', '--size', '64', '64']
    assert data_command.main(['shapes', *out]) == 0
    assert data_command.main(['check', str(tmp_path / 's/coco/annotations/instances_train2017.json')]) == 0
    assert 'no error found' in capsys.readouterr().out
