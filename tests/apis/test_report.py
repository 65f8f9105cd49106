"""The run report: its figures equal those of the metrics, and the page is complete in one file."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from PIL import Image
from pycocotools import mask as coco_mask

from mmitpn.apis.report import ReportHook, write_report
from mmitpn.apis.report_collector import MAP_SIDE, ReportCollector, Sample, SmallMap
from mmitpn.apis.report_figures import choose_images

NAMES = ('cat', 'dog', '<b>&"bird"</b>')


class Page(HTMLParser):
    """The tables of a page by the title of their section: rows of texts; and all addresses in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding='utf-8')
        self.tables: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._inside, self._section = '', ''
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'href', 'xlink:href')]
        if tag == 'tr':
            self.tables[self._section].append([])
        if tag in ('td', 'th'):
            self.tables[self._section][-1].append('')
        if tag in ('h2', 'h3'):
            self._section = ''
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ('h2', 'h3'):
            self.tables[self._section] = []
        self._inside = ''

    def handle_data(self, data: str) -> None:
        if self._inside in ('td', 'th', 'span'):
            self.tables[self._section][-1][-1] += data
        elif self._inside in ('h2', 'h3'):
            self._section += data

    def row(self, section: str, name: str) -> list[str]:
        return next(row[1:] for row in self.tables[section] if row and row[0] == name)


def detections(boxes: list, labels: list, scores: list) -> dict:
    return {
        'bboxes': torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        'labels': torch.tensor(labels, dtype=torch.long),
        'scores': torch.tensor(scores, dtype=torch.float),
    }


@pytest.fixture(scope='module')
def scene(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Nine images with objects of two sizes and two classes, a crowd, one image of nothing; noisy predictions."""
    root, random = tmp_path_factory.mktemp('scene'), np.random.default_rng(0)
    images, annotations, samples = [], [], []
    for number in range(9):
        path = root / f'{number}.png'
        Image.fromarray(np.full((120, 160, 3), 20 * number, np.uint8)).save(path)
        images.append({'id': number + 1, 'file_name': path.name, 'width': 160, 'height': 120})
        boxes, labels, scores = [], [], []
        for k in range(number % 4):
            x, y, side = *random.integers(0, 80, 2).tolist(), (20, 40)[k % 2]
            annotations.append({
                'id': len(annotations) + 1, 'image_id': number + 1, 'category_id': 10 + k % 2, 'area': side * side,
                'bbox': [x, y, side, side], 'iscrowd': int(number == 7 and k == 2),
                'segmentation': [[x, y, x + side, y, x + side, y + side, x, y + side]],
            })  # fmt: skip
            shift = random.integers(-6, 7, 4)
            boxes.append((np.array([x, y, x + side, y + side]) + shift).tolist())
            labels.append(int(random.random() < 0.3) if k % 2 else int(random.random() < 0.9) ^ 1)
            scores.append(float(random.random()))
        boxes.append([100, 80, 140, 110])
        labels.append(2)
        scores.append(0.25)
        found = detections(boxes, labels, scores)
        masks = np.zeros((len(boxes), 120, 160), bool)
        for mask, box in zip(masks, boxes, strict=True):
            mask[max(box[1], 0) : box[3], max(box[0], 0) : box[2]] = True
        found['masks'] = torch.from_numpy(masks)
        shape = {'img_id': number + 1, 'img_path': str(path), 'ori_shape': (120, 160)}
        samples.append({**shape, 'pred_instances': found})
    content = {'images': images, 'annotations': annotations}
    content['categories'] = [{'id': 10 + k, 'name': name} for k, name in enumerate(NAMES)]
    ann_file = root / 'instances.json'
    ann_file.write_text(json.dumps(content))
    return SimpleNamespace(root=root, ann_file=str(ann_file), samples=samples)


def report(folder: Path, samples: list[dict], *, evaluator: object = None, classes: tuple = NAMES, **more) -> Page:
    collector = ReportCollector(keep_ground_truth=evaluator is None)
    collector.dataset_meta = {'classes': classes, **more.pop('meta', {})}
    collector.process(None, samples)
    collector.evaluate(len(samples))
    cfg = Config({'model': {'type': '<Model>'}})
    settings = {'samples': collector.samples, 'classes': classes, 'evaluator': evaluator, 'metrics': {}, **more}
    return Page(write_report(folder, cfg=cfg, **settings))


def test_figures_of_a_detector_equal_those_of_coco_metric(scene: SimpleNamespace, tmp_path: Path) -> None:
    """CocoMetric of mmdet: of all classes and by size to three digits, and of each class."""
    metrics = pytest.importorskip('mmdet.evaluation')
    settings = {'type': 'mmdet.CocoMetric', 'ann_file': scene.ann_file, 'metric': ['bbox', 'segm']}
    metric = metrics.CocoMetric(scene.ann_file, metric=['bbox', 'segm'], classwise=True)
    evaluator = Evaluator([metric])
    evaluator.dataset_meta = {'classes': NAMES}
    evaluator.process(scene.samples)
    expected = evaluator.evaluate(len(scene.samples))
    page = report(tmp_path, scene.samples, evaluator=settings, metrics=expected)
    for kind, suffix in (('bbox', 'boxes'), ('segm', 'masks')):
        row = page.row(f'Classes ({suffix})', 'all classes')
        names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
        values = [expected[f'coco/{kind}_{name}'] for name in names]
        assert row[:6] == ['-' if value == -1 else f'{value:.3f}' for value in values]
        assert row[7] == '11'  # objects; the crowd is none
    assert 0 < values[0] < values[1] < 1
    for name in NAMES[:2]:  # the last kind of the metric
        assert page.row('Classes (masks)', name)[0] == f'{expected[f"coco/{name}_precision"]:.3f}'
    assert 'Not in these images (1): &lt;b&gt;&amp;' in page.text
    sizes = page.tables['Object sizes (masks)']
    assert [row[1] for row in sizes[1:]] == page.row('Classes (masks)', 'all classes')[3:6]
    assert page.row('Metrics', 'coco/bbox_mAP')[0] == f'{expected["coco/bbox_mAP"]:.4f}'


def test_confusion_matrix_by_hand(tmp_path: Path) -> None:
    """Matches, one wrong class, a missed object, one too many, a low score, and a prediction inside a crowd."""
    ground_truth = detections(
        [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], [0, 0, 1, 1], [1] * 4
    )
    found = detections(
        [[0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 50, 10], [80, 0, 90, 10], [60, 0, 70, 10], [5, 55, 15, 65]],
        [0, 1, 1, 2, 1, 0],
        [0.9, 0.8, 0.7, 0.6, 0.2, 0.9],
    )
    sample = {'img_id': 3, 'img_path': None, 'ori_shape': (100, 100), 'pred_instances': found}
    sample |= {'gt_instances': ground_truth, 'ignored_instances': detections([[0, 50, 40, 90]], [0], [1])}
    page = report(tmp_path, [sample])
    matrix = page.tables['Confusion matrix']
    assert matrix[0][1:] == [*NAMES, 'missed']
    assert [row[1:] for row in matrix[1:]] == [
        ['1', '1', '', ''],
        ['', '1', '', '1'],
        ['', '', '', ''],
        ['', '', '1', ''],
    ]
    assert page.tables['Most frequent confusions'][1:] == [['cat', 'dog', '1', '50.0 %']]
    assert 'an image without a path' in page.text


def label_samples(root: Path, *, size: tuple[int, int] = (40, 60)) -> list[dict]:
    """Six images, the upper half class 0, the lower 1; the first i rows of the i-th are predicted as class 1."""
    samples = []
    for number in range(6):
        path = root / f'{number}.png'
        Image.fromarray(np.full((*size, 3), 40 * number, np.uint8)).save(path)
        labels = torch.zeros(1, *size, dtype=torch.long)
        labels[:, size[0] // 2 :] = 1
        predicted = labels.clone()
        predicted[:, :number] = 1
        labels[..., 0] = 255
        samples.append({'img_path': str(path), 'gt_sem_seg': {'data': labels}, 'pred_sem_seg': {'data': predicted}})
    return samples


def test_figures_of_a_segmentor_equal_those_of_iou_metric(tmp_path: Path) -> None:
    mmseg = pytest.importorskip('mmseg.evaluation')
    samples = label_samples(tmp_path)
    evaluator = Evaluator([mmseg.IoUMetric(iou_metrics=['mIoU'], prefix='seg')])
    evaluator.dataset_meta = {'classes': NAMES}
    evaluator.process(samples)
    expected = evaluator.evaluate(len(samples))
    page = report(tmp_path, samples, metrics=expected)
    iou, accuracy, _ = page.row('Classes', 'all classes')
    assert (iou, accuracy) == (f'{expected["seg/mIoU"]:.2f}', f'{expected["seg/mAcc"]:.2f}')
    wrong, half = 59 * sum(range(6)), 59 * 6 * 20
    assert page.row('Classes', 'cat')[0] == f'{100 * (1 - wrong / half):.2f}'
    assert len(page.tables['Classes']) == 4  # without the class that is nowhere
    assert page.row('Confusion matrix', 'cat')[:2] == [str(half - wrong), str(wrong)]
    assert page.tags.count('img') == 3  # best, middling, worst


def test_panoptic(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    path = tmp_path / 'a.png'
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path)
    ids = np.zeros((20, 20, 3), np.uint8)
    ids[:, :10, 0], ids[:, 10:, 0] = 1, 2
    Image.fromarray(ids).save(tmp_path / 'ids.png')
    predicted = torch.full((1, 20, 20), 1)
    predicted[..., :8] = 1000
    segments = [{'id': 1, 'category': 0, 'is_thing': True}, {'id': 2, 'category': 1, 'is_thing': False}]
    sample = {'img_path': str(path), 'seg_map_path': str(tmp_path / 'ids.png'), 'segments_info': segments}
    sample['pred_panoptic_seg'] = {'sem_seg': predicted}
    page = report(tmp_path, [sample], meta={'thing_classes': NAMES[:1]})
    assert page.row('Classes', 'cat') == ['80.00', '80.00', '100.00', '1', '0', '0']
    assert page.row('Classes', 'dog')[0] == f'{100 * 10 / 12:.2f}'
    assert page.tags.count('img') == 1


def test_classification(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / 'a.png')
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.3, 0.6, 0.1], [0.2, 0.3, 0.5]])
    samples = [
        {'img_path': str(tmp_path / 'a.png'), 'gt_label': torch.tensor([gt]), 'pred_score': score}
        for gt, score in zip((0, 1, 0, 2), scores, strict=True)
    ]
    page = report(tmp_path, samples)
    assert page.row('Classes', 'all classes') == ['75.00', '', '4']
    assert page.row('Classes', 'cat') == ['50.00', '100.00', '2']
    assert page.row('Confusion matrix', 'cat') == ['1', '1', '']


def test_nothing_comes_from_outside_and_names_are_escaped(scene: SimpleNamespace, tmp_path: Path) -> None:
    settings = ConfigDict(type='CocoMetric', ann_file=scene.ann_file)
    page = report(tmp_path, scene.samples, evaluator=[settings], metrics={'<i>metric</i>': 0.5})
    assert page.addresses
    assert all(address.startswith(('#', 'data:')) for address in page.addresses)
    assert not re.search(r'https?:|@import|<script', page.text)
    assert not {'script', 'link', 'b', 'i', 'model', 'iframe'} & set(page.tags)
    assert len(page.text) < 3e6
    assert page.tables['Confusion matrix'][0][3] == NAMES[2]
    assert page.row('Metrics', '<i>metric</i>') == ['0.5000']


@pytest.mark.parametrize('ground_truth', [True, False])
def test_no_predictions_at_all(scene: SimpleNamespace, tmp_path: Path, ground_truth: bool) -> None:
    samples = [{**one, 'pred_instances': detections([], [], [])} for one in scene.samples]
    ann_file = tmp_path / 'empty.json'
    ann_file.write_text(json.dumps({**json.loads(Path(scene.ann_file).read_text()), 'annotations': []}))
    settings = {'type': 'CocoMetric', 'ann_file': scene.ann_file if ground_truth else str(ann_file)}
    page = report(tmp_path, samples, evaluator=settings)
    assert page.row('Classes', 'all classes')[0] == ('0.000' if ground_truth else '-')
    assert ('No image has an object or a prediction' in page.text) != ground_truth


def test_many_classes_are_folded(tmp_path: Path) -> None:
    names = tuple(f'class {k}' for k in range(150))
    label = torch.arange(150).repeat(2, 1)[None]
    predicted = label.clone()
    predicted[0, :, 7] = 9
    sample = {'img_path': 'gone.png', 'gt_sem_seg': {'data': label}, 'pred_sem_seg': {'data': predicted}}
    page = report(tmp_path, [sample], classes=names)
    rows = [row for row in page.tables['Classes'] if len(row) > 1]
    assert [rows[-1][0], len(rows)] == ['class 7', 152]
    assert 'show the 111 rows between' in page.text
    assert len(page.tables['Confusion matrix']) == 21
    assert page.tables['Most frequent confusions'][1][:3] == ['class 7', 'class 9', '2']
    assert 'the files are not there: gone.png' in page.text


def test_choice_of_images() -> None:
    scores = [None if k == 4 else (k / 10,) for k in range(11)]
    assert choose_images(scores, 3) == {'best': [10, 9, 8], 'middling': [7, 6, 5], 'worst': [0, 1, 2]}
    assert choose_images(scores, 2) == {'best': [10, 9], 'middling': [6, 5], 'worst': [0, 1]}
    assert choose_images([(0.5,)]) == {'best': [0], 'middling': [], 'worst': []}
    assert choose_images([None]) == {'best': [], 'middling': [], 'worst': []}


def test_small_maps_keep_the_labels() -> None:
    labels = np.repeat(np.arange(-1, 9), 100)[None].repeat(400, axis=0)
    small, ids = SmallMap.shrink(labels, labels * 5).read()
    assert small.shape == (128, MAP_SIDE)
    np.testing.assert_array_equal(np.unique(small), np.arange(-1, 9))
    np.testing.assert_array_equal(ids, small * 5)
    assert (SmallMap.shrink(labels[:90, :50]).read()[0] == -1).all()


def test_report_of_a_training_run(tmp_path: Path, scene: SimpleNamespace) -> None:
    """The hook collects the last validation beside the config's metrics, and the curves are those of the log."""
    log = tmp_path / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    lines = [{'loss': 3.0, 'step': 50, 'lr': 1e-4}, {'coco/bbox_mAP': 0.4, 'step': 50}]
    lines += [{'loss': 2.0, 'step': 90, 'lr': 1e-5}, {'coco/bbox_mAP': 0.3, 'step': 90}]
    log.write_text('\n'.join(map(json.dumps, lines)))
    evaluator = Evaluator([])
    evaluator.dataset_meta = {'classes': NAMES}
    cfg = Config({'val_evaluator': {'type': 'CocoMetric', 'ann_file': scene.ann_file}})
    loop = SimpleNamespace(evaluator=evaluator)
    runner = SimpleNamespace(work_dir=str(tmp_path), cfg=cfg, val_loop=loop, max_iters=90)
    hook = ReportHook()
    for runner.iter in (50, 90):
        assert evaluator.metrics == []
        hook.before_val(runner)
        evaluator.process(scene.samples)
        assert evaluator.evaluate(len(scene.samples)) == {}
    hook.after_train(runner)
    page = Page(tmp_path / 'report.html')
    assert page.row('Metrics', 'coco/bbox_mAP') == ['0.3000', '0.4000', '50', '2']
    assert page.row('Classes', 'all classes')[-1] == '11'
    assert page.tags.count('svg') == 2
    assert 'training run' in page.text


def test_without_log_and_samples_there_is_still_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, cfg=Config({}), samples=[Sample('other')]))
    assert 'the samples have no ground truth' in page.text
    assert 'No validation was logged' in page.text
    assert torch.__version__.startswith(page.row('Versions', 'torch')[0])
    with pytest.raises(ValueError, match='score_threshold is 2; allowed: 0 to 1'):
        write_report(tmp_path, cfg=Config({}), score_threshold=2)


def test_masks_are_kept_as_run_lengths(scene: SimpleNamespace) -> None:
    collector = ReportCollector()
    collector.process(None, scene.samples)
    (first, *_) = collector.results
    decoded = coco_mask.decode(first.values['masks']).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded, scene.samples[0]['pred_instances']['masks'].numpy())
