"""The sections of a report that are computed from predictions: per class, curves, sizes, confusions, images."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmitpn.visualization.image_grid import AnnotatedImage, draw_image_grid
from mmitpn.visualization.predictions import KINDS, annotate_objects, paint_labels, read_rgb

from .report_collector import Sample
from .report_page import (
    FIGURE_STYLE,
    Section,
    class_table,
    confusion_matrix,
    figure_jpeg,
    figure_svg,
    note,
    number,
    table,
)

IMAGES = 4
"""Number of images in each of the groups best, middling and worst."""
SIZES = ('small', 'medium', 'large')
MAX_DETECTIONS = (100, 300, 1000)
"""Detections per image that count, as in mmdet's ``CocoMetric``: the first for AP, the last for everything else."""


# --- detection and instance segmentation ------------------------------------------------------------------------------


def load_coco(ann_file: str | Path) -> COCO:
    """Read a file of COCO annotations without pycocotools' messages."""
    with redirect_stdout(io.StringIO()):
        return COCO(str(ann_file))


def coco_of_samples(samples: Sequence[Sample], classes: Sequence[str]) -> COCO:
    """Make COCO annotations of the boxes that the pipeline packed; ignored ones are crowd regions."""
    content: dict[str, list] = {
        'images': [],
        'annotations': [],
        'categories': [{'id': label, 'name': name} for label, name in enumerate(classes)],
    }
    for sample in samples:
        height, width = sample.values['shape']
        content['images'].append({'id': sample.values['id'], 'height': height, 'width': width})
        for key, crowd in (('gt', 0), ('ignored', 1)):
            for box, label in zip(*sample.values.get(key, ((), ())), strict=True):
                box = _to_xywh(box.tolist())
                one = {'image_id': sample.values['id'], 'category_id': int(label), 'bbox': box, 'iscrowd': crowd}
                content['annotations'].append({**one, 'id': len(content['annotations']) + 1, 'area': box[2] * box[3]})
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _to_xywh(box: Sequence[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def coco_results(samples: Sequence[Sample], category_ids: Sequence[int], *, masks: bool = False) -> list[dict]:
    """Turn samples into COCO's results, the best of each image first.

    Args:
        samples: Of a detector.
        category_ids: Of COCO, by class index.
        masks: Give the mask of each instance in place of its box, and the score of the mask.
    """
    results = []
    for sample in samples:
        kept = sample.values
        scores = kept['mask_scores'] if masks and kept['mask_scores'] is not None else kept['scores']
        for index in np.argsort(-scores, kind='stable').tolist():
            shape = (
                {'segmentation': kept['masks'][index]} if masks else {'bbox': _to_xywh(kept['boxes'][index].tolist())}
            )
            category = category_ids[int(kept['labels'][index])]
            results.append({'image_id': kept['id'], 'category_id': category, 'score': float(scores[index]), **shape})
    return results


def evaluate_coco(coco: COCO, results: list[dict], category_ids: Sequence[int], kind: str) -> COCOeval:
    """Evaluate results as mmdet's ``CocoMetric`` does; ``kind`` is 'bbox' or 'segm'."""
    with redirect_stdout(io.StringIO()):
        if results:
            found = coco.loadRes([dict(one) for one in results])
        else:  # which loadRes does not accept
            found = COCO()
            found.dataset = {**coco.dataset, 'annotations': []}
            found.createIndex()
        evaluation = COCOeval(coco, found, kind)
        evaluation.params.catIds = list(category_ids)
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _mean(values: np.ndarray) -> float:
    """The mean without COCO's -1 for no ground truth; NaN for none."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float('nan')


def detection_sections(
    samples: Sequence[Sample], coco: COCO, classes: Sequence[str], *, kinds: Sequence[str], score_threshold: float
) -> list[Section]:
    """Sections of a detector or an instance segmentation model.

    Args:
        samples: Of task 'detection'.
        coco: The ground truth.
        classes: Names of the classes, which the ground truth has too.
        kinds: Of 'bbox' and 'segm', the ones to evaluate.
        score_threshold: Of the predictions that are counted as confused, and drawn.
    """
    category_ids = coco.getCatIds(catNms=list(classes))
    names = [one['name'] for one in coco.loadCats(category_ids)]
    boxes = coco_results(samples, category_ids)
    sections = []
    for kind in kinds:
        found = boxes if kind == 'bbox' else coco_results(samples, category_ids, masks=True)
        evaluation = evaluate_coco(coco, found, category_ids, kind)
        suffix = '' if len(kinds) == 1 else {'bbox': ' (boxes)', 'segm': ' (masks)'}[kind]
        sections += _coco_sections(evaluation, names, suffix)
    matrix, scores = _confusions(samples, coco, category_ids, names, score_threshold)
    text = f'Scores from {score_threshold:g}; box and object match above an IoU of 0.5.'
    html = confusion_matrix(matrix, names, background=True, unit='objects', remark=text)
    sections.append(Section('Confusion matrix', html))
    by_image = defaultdict(list)
    segments = coco_results(samples, category_ids, masks=True) if 'segm' in kinds else [{}] * len(boxes)
    for box, segment in zip(boxes, segments, strict=True):
        if box['score'] >= score_threshold:
            by_image[box['image_id']].append({**segment, **box})

    def draw(sample: Sample, image: np.ndarray) -> list[AnnotatedImage]:
        ground_truth = coco.loadAnns(coco.getAnnIds(sample.values['id'], category_ids))
        both = (ground_truth, by_image[sample.values['id']])
        category_names = dict(zip(category_ids, names, strict=True))
        return [annotate_objects(image, those, category_names, masks='segm' in kinds) for those in both]

    text = 'F1 of the matches in the confusion matrix'
    sections.append(image_section(samples, scores, ('F1', text), draw, names))
    return sections


def _coco_sections(evaluation: COCOeval, names: Sequence[str], suffix: str) -> list[Section]:
    precision, recall = evaluation.eval['precision'], evaluation.eval['recall']
    counts = _count_objects(evaluation)
    values, rows = [_mean(precision[:, :, k, 0, 0]) for k in range(len(names))], []
    for k, value in enumerate(values):
        cells = [value, *(_mean(precision[t, :, k, 0, -1]) for t in (0, 5))]
        cells += [_mean(precision[:, :, k, area, -1]) for area in (1, 2, 3)]
        rows.append((*map(number, [*cells, _mean(recall[:, k, 0, 0])]), number(int(counts[k].sum()))))
    every = [*map(float, evaluation.stats[:6]), _mean(recall[:, :, 0, 0])]
    all_classes = (*map(number, every), number(int(counts.sum())))
    headings = ('AP', 'AP50', 'AP75', *(f'AP {size}' for size in SIZES), 'recall', 'objects')
    text = (
        f'AP and recall: IoU 0.50 to 0.95, {MAX_DETECTIONS[0]} detections per image; the other columns:'
        f' {MAX_DETECTIONS[-1]}, as in CocoMetric. A dash: no object of that kind.'
    )
    sizes = [
        (
            f'{size} ({span})',
            *(number(_mean(one)) for one in (precision[:, :, :, area, -1], precision[0, :, :, area, -1])),
            number(_mean(recall[:, :, area, -1])),
            number(int(counts[:, area - 1].sum())),
        )
        for area, (size, span) in enumerate(
            zip(SIZES, ('below 32² pixels', '32² to 96²', 'above 96²'), strict=True), start=1
        )
    ]
    curve = 'No object of these classes.' if not counts.sum() else 'Mean of the classes; thin: each class at IoU 0.5.'
    return [
        Section(f'Classes{suffix}', note(text) + class_table(names, headings, all_classes, rows, values, every[0])),
        Section(
            f'Precision and recall{suffix}',
            note(curve)
            + (figure_svg(_plot_precision(precision, names), 'precision over recall') if counts.sum() else ''),
        ),
        Section(
            f'Object sizes{suffix}',
            table(
                ('size', 'AP', 'AP50', 'recall', 'objects'),
                sizes,
                bars=[_mean(precision[:, :, :, area, -1]) for area in (1, 2, 3)],
            ),
        ),
    ]


def _count_objects(evaluation: COCOeval) -> np.ndarray:
    """Objects of each class and size, ``(K, 3)``, without crowd regions."""
    params = evaluation.params
    index = {category: k for k, category in enumerate(params.catIds)}
    counts = np.zeros((len(params.catIds), 3), dtype=np.int64)
    for one in evaluation.cocoGt.loadAnns(evaluation.cocoGt.getAnnIds(params.imgIds, params.catIds)):
        if not one.get('iscrowd'):
            counts[index[one['category_id']], np.searchsorted((32**2, 96**2), one['area'], side='right')] += 1
    return counts


def _plot_precision(precision: np.ndarray, names: Sequence[str]) -> Figure:
    recall = np.linspace(0, 1, precision.shape[1])
    with mpl.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=(10, 4.6), layout='constrained')
        axes = figure.subplots()
        single = precision[0, :, :, 0, -1]
        for k, name in enumerate(names):
            if (single[:, k] > -1).any() and len(names) > 1:
                few = len(names) <= 12
                style = {'color': f'C{k % 10}', 'linestyle': ('-', '--')[k // 10 % 2]} if few else {'color': '#999999'}
                axes.plot(
                    recall, single[:, k], linewidth=0.8, alpha=0.9 if few else 0.5, label=name if few else None, **style
                )
        for ious, style, label in (([0], '-', '0.50'), ([5], '--', '0.75'), (slice(None), ':', '0.50 to 0.95')):
            mean = [_mean(precision[ious, r, :, 0, -1]) for r in range(len(recall))]
            axes.plot(recall, mean, color='#000000', linewidth=2, linestyle=style, label=f'all, IoU {label}')
        axes.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(visible=True, color='#e4e4e4', linewidth=0.8)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    return figure


def _confusions(
    samples: Sequence[Sample], coco: COCO, category_ids: Sequence[int], names: Sequence[str], score_threshold: float
) -> tuple[np.ndarray, list[tuple]]:
    """The confusion matrix of all images, and the score of each: F1, then the number of matches less mistakes."""
    from supervision import ConfusionMatrix, Detections

    index = {category: label for label, category in enumerate(category_ids)}
    total = np.zeros((len(names) + 1,) * 2, dtype=np.int64)
    scores = []
    for sample in samples:
        objects = coco.loadAnns(coco.getAnnIds(sample.values['id'], category_ids))
        gt = np.array([one['bbox'] for one in objects], dtype=float).reshape(-1, 4)
        gt_labels = np.array([index[one['category_id']] for one in objects], dtype=int)
        crowd = np.array([bool(one.get('iscrowd')) for one in objects], dtype=bool)
        kept = sample.values['scores'] >= score_threshold
        boxes, labels = sample.values['boxes'][kept].astype(float), sample.values['labels'][kept].astype(int)
        if crowd.any() and len(boxes):  # inside of a crowd of its class a prediction is not counted, unless it matches
            pairs = coco_mask.iou(np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]), gt, crowd.astype(np.uint8))
            matches = (pairs > 0.5) & (labels[:, None] == gt_labels)
            counted = ~matches[:, crowd].any(axis=1) | matches[:, ~crowd].any(axis=1)
            kept[kept] = counted
            boxes, labels = boxes[counted], labels[counted]
        gt, gt_labels = gt[~crowd], gt_labels[~crowd]
        gt[:, 2:] += gt[:, :2]
        matrix = ConfusionMatrix.from_detections(
            [Detections(xyxy=boxes, class_id=labels, confidence=sample.values['scores'][kept].astype(float))],
            [Detections(xyxy=gt, class_id=gt_labels)],
            classes=list(names),
            conf_threshold=score_threshold,
            iou_threshold=0.5,
        ).matrix
        total += matrix
        right = int(np.trace(matrix))
        errors = len(boxes) + len(gt) - 2 * right
        scores.append((2 * right / (2 * right + errors), right - errors) if right + errors else None)
    return total, scores


# --- semantic and panoptic segmentation -------------------------------------------------------------------------------


def semantic_sections(samples: Sequence[Sample], classes: Sequence[str]) -> list[Section]:
    """Sections of a semantic segmentation model; figures in percent, as mmseg's ``IoUMetric``."""
    size = len(classes)
    total = np.zeros((size, size), dtype=np.int64)
    scores = []
    for sample in samples:
        matrix = np.zeros(size * size, dtype=np.int64)
        matrix[sample.values['pairs']] = sample.values['counts']
        total += matrix.reshape(size, size)
        iou = _ious(matrix.reshape(size, size))
        scores.append((float(np.nanmean(iou)),) if np.isfinite(iou).any() else None)
    iou, pixels = _ious(total), total.sum(axis=1)
    with np.errstate(invalid='ignore'):
        accuracy = np.where(pixels > 0, np.diag(total) / pixels, np.nan)
    fractions = pixels / max(pixels.sum(), 1)
    rows = [[number(100 * one[k], 2) for one in (iou, accuracy, fractions)] for k in range(size)]
    means = [float(np.nanmean(one)) if np.isfinite(one).any() else float('nan') for one in (iou, accuracy)]
    every = [number(100 * one, 2) for one in (*means, 1.0)]
    headings = ('IoU', 'accuracy', 'of the pixels')
    html = note('In percent.') + class_table(classes, headings, every, rows, iou.tolist(), means[0])
    return [
        Section('Classes', html),
        Section('Confusion matrix', confusion_matrix(total, classes, background=False, unit='pixels')),
        image_section(samples, scores, ('mIoU', 'mean IoU of the classes in an image'), _draw_maps(classes), classes),
    ]


def _ious(matrix: np.ndarray) -> np.ndarray:
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix)
    with np.errstate(invalid='ignore'):
        return np.where(union > 0, np.diag(matrix) / union, np.nan)


def panoptic_sections(samples: Sequence[Sample], classes: Sequence[str]) -> list[Section]:
    """Sections of a panoptic segmentation model; figures in percent, as our ``PanopticMetric``."""
    from mmitpn.evaluation.panoptic_metric import Tally

    total: dict[int, Tally] = defaultdict(Tally)
    scores = []
    for sample in samples:
        qualities = []
        for label, tally in sample.values['tallies'].items():
            total[label] = total[label].plus(tally)
            qualities += [tally.quality[0]] if tally.quality else []
        scores.append((float(np.mean(qualities)),) if qualities else None)
    none = (float('nan'),) * 3
    quality = [total[k].quality or none for k in range(len(classes))]
    rows = [
        [*(number(100 * one, 2) for one in quality[k]), *map(number, (total[k].tp, total[k].fp, total[k].fn))]
        for k in range(len(classes))
    ]
    known = [one for one in quality if one is not none]
    means = np.mean(known, axis=0).tolist() if known else none
    sums = [number(sum(getattr(one, name) for one in total.values())) for name in ('tp', 'fp', 'fn')]
    every = [*(number(100 * one, 2) for one in means), *sums]
    headings = ('PQ', 'SQ', 'RQ', 'matched', 'extra', 'missed')
    html = class_table(classes, headings, every, rows, [one[0] for one in quality], means[0])
    return [
        Section('Classes', note('PQ, SQ and RQ in percent; numbers of segments.') + html),
        image_section(samples, scores, ('PQ', 'mean PQ of the classes in an image'), _draw_maps(classes), classes),
    ]


def _draw_maps(classes: Sequence[str]) -> Callable[[Sample, np.ndarray], list[AnnotatedImage]]:
    def draw(sample: Sample, image: np.ndarray) -> list[AnnotatedImage]:
        drawn = []
        for one in sample.values['maps']:
            labels, ids = one.read()
            small = np.asarray(Image.fromarray(image).resize(labels.shape[::-1]))
            labels = np.where(labels < len(classes), labels, -1)
            seen = np.unique(labels[labels >= 0]).tolist()  # for the legend
            drawn.append(AnnotatedImage(paint_labels(small, labels, ids), labels=seen))
        return drawn

    return draw


# --- classification ---------------------------------------------------------------------------------------------------


def classification_sections(samples: Sequence[Sample], classes: Sequence[str]) -> list[Section]:
    """Sections of a classifier with one label per image; figures in percent."""
    size = len(classes)
    matrix = np.zeros((size, size), dtype=np.int64)
    for sample in samples:
        matrix[sample.values['gt'], sample.values['pred']] += 1
    right, gt, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid='ignore'):
        recall, precision = (np.where(one > 0, right / one, np.nan) for one in (gt, predicted))
    rows = [[number(100 * recall[k], 2), number(100 * precision[k], 2), number(int(gt[k]))] for k in range(size)]
    accuracy = right.sum() / max(gt.sum(), 1)
    every = (number(100 * accuracy, 2), '', number(int(gt.sum())))
    text = 'In percent. Accuracy: of the images of the class; precision: of the predictions of it.'
    headings = ('accuracy', 'precision', 'images')
    html = note(text) + class_table(classes, headings, every, rows, recall.tolist(), accuracy)
    scores = [(one.values['score'] * (1 if one.values['gt'] == one.values['pred'] else -1),) for one in samples]

    def draw(sample: Sample, image: np.ndarray) -> list[AnnotatedImage]:
        kept = sample.values
        pred = '' if kept['gt'] == kept['pred'] else f', not {classes[kept["pred"]]}'
        return [AnnotatedImage(image, f'{classes[kept["gt"]]}{pred} {kept["score"]:.2f}')]

    return [
        Section('Classes', html),
        Section('Confusion matrix', confusion_matrix(matrix, classes, background=False, unit='images')),
        image_section(
            samples,
            scores,
            ('score', 'the score of the prediction, wrong ones last'),
            draw,
            (),
        ),
    ]


# --- images -----------------------------------------------------------------------------------------------------------


def choose_images(scores: Sequence[tuple | None], number_of: int = IMAGES) -> dict[str, list[int]]:
    """Choose the best, middling and worst images; none is in two groups.

    Args:
        scores: Of each image, the greater the better; None: the image is not chosen.
        number_of: Images per group.

    Returns:
        'best', 'middling' and 'worst': indices, best first; worst first in the last group.
    """
    order = sorted((i for i, score in enumerate(scores) if score is not None), key=lambda i: scores[i], reverse=True)
    number_of = min(number_of, max(1, len(order) // 3))
    best, rest = order[:number_of], order[number_of:]
    worst, rest = rest[::-1][:number_of], rest[: max(len(rest) - number_of, 0)]
    start = (len(rest) - min(number_of, len(rest))) // 2
    return {'best': best, 'middling': rest[start : start + number_of], 'worst': worst}


def image_section(
    samples: Sequence[Sample],
    scores: Sequence[tuple | None],
    measure: tuple[str, str],
    draw: Callable[[Sample, np.ndarray], list[AnnotatedImage]],
    names: Sequence[str],
) -> Section:
    """Draw the best, the middling and the worst images.

    Args:
        samples: Of all images.
        scores: Of each, as :func:`choose_images` takes them; the first number is shown.
        measure: What the scores are, as a name and in words.
        draw: Makes of a sample and its image what is drawn: ground truth and prediction, or one for both.
        names: Of the classes, for the legend.
    """
    html, gone = (
        note(f'By {measure[1]}. Ground truth on the left, prediction on the right.' if names else f'By {measure[1]}.'),
        [],
    )
    for group, indices in choose_images(scores).items():
        drawn: list[AnnotatedImage] = []
        seen: set[int] = set()
        for index in indices:
            sample = samples[index]
            if sample.image is None or not Path(sample.image).is_file():
                gone.append(sample.image or 'an image without a path')
                continue
            both = draw(sample, read_rgb(sample.image))
            if len(both) == len(KINDS):
                titles = (Path(sample.image).name[-36:], f'{KINDS[1]}, {measure[0]} {number(scores[index][0])}')
                both = [replace(one, title=title) for one, title in zip(both, titles, strict=True)]
            drawn += both
            seen |= {label for one in both for label in one.labels}
        if drawn:
            legend = {names[label]: label for label in sorted(seen)} if names else None
            with mpl.rc_context(FIGURE_STYLE):
                figure = draw_image_grid(drawn, columns=min(4, max(len(drawn), 2)), tile=280, legend=legend)
                html += f'<h3>{group.capitalize()}</h3>' + figure_jpeg(figure, f'{group} images')
    if gone:
        html += note(f'Not drawn, since the files are not there: {", ".join(gone)}')
    elif not any(score is not None for score in scores):
        html += note('No image has an object or a prediction.')
    return Section('Images', html)
