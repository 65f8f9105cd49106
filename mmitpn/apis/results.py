"""Predictions for one image: arrays, a drawing, and what other tools read (supervision, COCO results)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mmitpn.apis.data_sources import VideoFacts
from mmitpn.utils import mask_to_box

if TYPE_CHECKING:
    import supervision as sv

OUTPUTS = ('boxes', 'masks', 'panoptic', 'semantic', 'probabilities')
INSTANCE_OFFSET = 1000  # mmdet's panoptic ids: class + 1000 * number of the instance
TOP = 5  # classes of a classifier that are named


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Predictions for one image. Boxes and masks are in pixels of the image as it was read, before any resizing.

    An output that the model does not have raises a ValueError that names those it has.

    Args:
        image: RGB, uint8 ``(H, W, 3)``.
        name: File name; of a frame the name of its video.
        classes: Names of the classes of the model.
        values: The outputs by name; see the properties.
        path: The image file; None for arrays, frames and addresses.
        frame: Index of the frame in its video, from 0.
        video: The video.
        segments_info: Of a panoptic model: one dict for each segment, ``id`` (in :attr:`panoptic`), ``label`` (class
            index), ``name``, ``is_thing`` and ``area`` in pixels.
    """

    image: np.ndarray
    name: str
    classes: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    path: Path | None = None
    frame: int | None = None
    video: VideoFacts | None = None
    segments_info: Sequence[dict[str, Any]] = field(default_factory=list)

    # --- outputs ---

    @property
    def outputs(self) -> tuple[str, ...]:
        """Which of boxes, masks, panoptic, semantic and probabilities the model gives."""
        return tuple(name for name in OUTPUTS if name in self.values)

    @property
    def boxes(self) -> np.ndarray:
        """Boxes of the objects, float32 ``(N, 4)``: x1, y1, x2, y2."""
        return self._get('boxes')

    @property
    def masks(self) -> np.ndarray:
        """Masks of the objects, bool ``(N, H, W)``."""
        return self._get('masks')

    @property
    def scores(self) -> np.ndarray:
        """Scores of the objects, float32 ``(N,)``; of a classifier the probabilities of :attr:`labels`."""
        if 'probabilities' in self.values:
            return self.probabilities[self.labels]
        return self._get('scores')

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 ``(N,)``.

        Those of the objects or segments, of the classes in a label map (largest area first), or the five best ones of a
        classifier.
        """
        if 'boxes' in self.values:
            return self.values['labels']
        if 'panoptic' in self.values:
            return np.array([one['label'] for one in self.segments_info], dtype=np.int64)
        if 'semantic' in self.values:
            found, areas = np.unique(self.semantic, return_counts=True)
            found = found[np.argsort(-areas, kind='stable')]
            return found[found < len(self.classes)].astype(np.int64)
        return np.argsort(-self.probabilities, kind='stable')[:TOP]

    @property
    def names(self) -> list[str]:
        """Class names of :attr:`labels`."""
        return [self.classes[label] for label in self.labels]

    @property
    def semantic(self) -> np.ndarray:
        """Class index of each pixel, int64 ``(H, W)``."""
        return self._get('semantic')

    @property
    def panoptic(self) -> np.ndarray:
        """Segment id of each pixel, int32 ``(H, W)``; 0 is no segment, the others are in ``segments_info``."""
        return self._get('panoptic')

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities of all classes of a classifier, float32 ``(K,)``."""
        return self._get('probabilities')

    def _get(self, name: str) -> np.ndarray:
        if name not in self.values:
            has = ', '.join(f'result.{one}' for one in self.outputs)
            raise ValueError(f'the model gives no {name}; use {has}, or a config of a model that gives {name}')
        return self.values[name]

    # --- text ---

    def __len__(self) -> int:
        """Number of objects or segments, of classes in a label map, or of the best classes of a classifier."""
        return len(self.labels)

    @property
    def summary(self) -> str:
        """What was found, in one line: ``3 objects: 2 circle, 1 star``."""
        if 'probabilities' in self.values:
            return ', '.join(f'{name} {score:.2f}' for name, score in zip(self.names, self.scores, strict=True))
        if 'boxes' not in self.values and 'panoptic' not in self.values:
            parts = [f'{self.classes[one]} {(self.semantic == one).mean():.0%}' for one in self.labels]
            return f'{_number(parts, "class", "classes")}: {", ".join(parts)}'
        what = ('object', 'objects') if 'boxes' in self.values else ('segment', 'segments')
        counts = Counter(self.names).most_common()
        return _number(self.names, *what) + ': ' * bool(counts) + ', '.join(f'{n} {name}' for name, n in counts)

    def __repr__(self) -> str:
        where = self.name if self.frame is None else f'{self.name} frame {self.frame}'
        return f'Result({where}, {self.image.shape[1]}x{self.image.shape[0]}: {self.summary})'

    # --- for other tools ---

    def to_supervision(self) -> sv.Detections | sv.Classifications:
        """The predictions for ``supervision``, with ``data['class_name']``.

        Returns:
            ``sv.Detections`` of the objects; of the segments of a panoptic model (with ``data['segment_id']``) or the
            classes of a label map, with their masks; ``sv.Classifications`` of a classifier, all classes.

        Raises:
            ImportError: If supervision is not installed.
        """
        sv = import_supervision()
        if 'probabilities' in self.values:
            order = np.argsort(-self.probabilities, kind='stable')
            return sv.Classifications(class_id=order, confidence=self.probabilities[order])
        data: dict[str, Any] = {'class_name': np.array(self.names, dtype=str)}
        if 'boxes' in self.values:
            masks = self.values.get('masks')
            return sv.Detections(self.boxes, mask=masks, confidence=self.scores, class_id=self.labels, data=data)
        masks = self._region_masks()
        if 'panoptic' in self.values:
            data['segment_id'] = np.array([one['id'] for one in self.segments_info], dtype=np.int64)
        boxes = np.array([_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
        return sv.Detections(boxes, mask=masks, class_id=self.labels, data=data)

    def to_coco(self, image_id: int = 0, *, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The predictions as COCO results, in plain numbers and strings.

        Args:
            image_id: Id of the image.
            category_ids: Category id of each class of the model; None: class index + 1.

        Returns:
            One dict for each object: ``image_id``, ``category_id``, ``score``, ``bbox`` (x, y, width, height) and,
            with masks, ``segmentation`` (RLE, counts as a string). Segments and the classes of a label map have
            no score; the five best classes of a classifier have no box.

        Raises:
            ValueError: If the number of category ids is not that of the classes.
        """
        if category_ids is not None and len(category_ids) != len(self.classes):
            raise ValueError(f'{len(category_ids)} category_ids for {len(self.classes)} classes; give one for each')
        ids = range(1, len(self.classes) + 1) if category_ids is None else category_ids
        results = [{'image_id': image_id, 'category_id': int(ids[label])} for label in self.labels]
        if 'probabilities' in self.values or 'boxes' in self.values:
            for one, score in zip(results, self.scores, strict=True):
                one['score'] = float(score)
        if 'probabilities' in self.values:
            return results
        masks = self.values.get('masks') if 'boxes' in self.values else self._region_masks()
        if 'boxes' in self.values:
            boxes = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1).tolist()
        else:
            boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (_box(mask) for mask in masks)]
        for index, one in enumerate(results):
            one['bbox'] = boxes[index]
            if masks is not None:
                one['segmentation'] = _encode(masks[index])
        return results

    def _region_masks(self) -> np.ndarray:
        """Masks of the segments, or of the classes of a label map: bool ``(N, H, W)``."""
        if 'panoptic' in self.values:
            regions, keys = self.panoptic, [one['id'] for one in self.segments_info]
        else:
            regions, keys = self.semantic, self.labels
        return np.stack([regions == key for key in keys]) if len(keys) else np.zeros((0, *regions.shape), dtype=bool)

    # --- drawing ---

    def draw(self) -> np.ndarray:
        """Draw the predictions on a copy of the image: RGB, uint8 ``(H, W, 3)``.

        Raises:
            ImportError: If supervision is not installed.
        """
        sv = import_supervision()
        from mmitpn.visualization.image_grid import class_color, text_color

        side = min(self.image.shape[:2])
        line, scale = max(1, round(side / 320)), side / 1000
        if len(self.values.get('boxes', ())):  # small labels for small objects
            sizes = self.boxes[:, 2:] - self.boxes[:, :2]
            scale = min(scale, float(np.median(np.sqrt(sizes.prod(axis=1)))) / 130)
        scale = float(np.clip(scale, max(0.35, side / 3000), 2.0))  # legible where a large image is shown as a whole
        colors = [class_color(index) for index in range(len(self.classes))]
        palette = sv.ColorPalette([sv.Color(*(round(255 * one) for one in color)) for color in colors])
        texts = sv.ColorPalette([getattr(sv.Color, text_color(color).upper()) for color in colors])
        scene = np.ascontiguousarray(self.image[..., ::-1])  # supervision draws in BGR
        names, position = self.names, sv.Position.CENTER
        padding = max(2, round(7 * scale))
        if {'boxes', 'probabilities'} & set(self.values):
            names = [f'{name} {score:.2f}' for name, score in zip(self.names, self.scores, strict=True)]
            position = sv.Position.TOP_LEFT
        order = (
            np.argsort(self.scores, kind='stable') if 'boxes' in self.values else np.arange(len(self))
        )  # best on top
        found = None if 'probabilities' in self.values else self.to_supervision()
        if found is not None and found.mask is not None:
            scene = sv.MaskAnnotator(palette, opacity=0.45).annotate(scene, found)
            scene = sv.PolygonAnnotator(palette, thickness=max(1, line // 2)).annotate(scene, found)
        if 'boxes' in self.values:
            scene = sv.BoxAnnotator(palette, thickness=line).annotate(scene, found[order])
            anchors = found.xyxy
        elif found is not None:
            anchors = np.array([[*_innermost(mask)] * 2 for mask in found.mask])
        else:  # the classes of a classifier, one below the other
            anchors = np.array([[0, row * (round(24 * scale) + 2 * padding)] * 2 for row in range(1, len(names) + 1)])
        labels = sv.LabelAnnotator(
            palette, text_color=texts, text_scale=scale, text_thickness=max(1, round(1.6 * scale)),
            text_padding=padding, text_position=position, smart_position=found is not None,
        )  # fmt: skip
        at = sv.Detections(anchors.reshape(-1, 4).astype(np.float32)[order], class_id=self.labels[order])
        return np.ascontiguousarray(labels.annotate(scene, at, labels=[names[one] for one in order])[..., ::-1])

    def save(self, path: str | Path) -> Path:
        """Draw the predictions and write them as an image file, whose folder is created.

        Args:
            path: The file; its ending names the format, as of ``PIL.Image.save``.

        Returns:
            The path.

        Raises:
            ValueError: If the ending is of no image format.
            ImportError: If supervision is not installed.
        """
        path = Path(path)
        if path.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f'{path}: {path.suffix!r} is not a suffix of an image file; use .jpg or .png')
        drawing = Image.fromarray(self.draw())
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.save(path, **({'quality': 95} if path.suffix.lower() in ('.jpg', '.jpeg', '.webp') else {}))
        return path


def import_supervision() -> Any:
    """The module ``supervision``, which is imported when it is first used.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            'drawing, videos, tiles and to_supervision() need supervision: pip install supervision', name='supervision'
        ) from error
    return supervision


# --- from the frameworks' data samples --------------------------------------------------------------------------------


def read_sample(sample: Any, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Read what a model of mmdet, mmseg or mmpretrain predicted for an image.

    Args:
        sample: Its data sample.
        outputs: The outputs of the model, of ``OUTPUTS``.

    Returns:
        All objects, whatever their score, and maps, by the names of :class:`Result`'s ``values``; ``panoptic`` with
        mmdet's ids.
    """
    values: dict[str, np.ndarray] = {}
    if 'boxes' in outputs:
        found = sample.pred_instances
        values['boxes'] = _array(found.bboxes, np.float32)
        values['scores'] = _array(found.scores, np.float32)
        values['labels'] = _array(found.labels, np.int64)
        if 'masks' in outputs:
            values['masks'] = _array(found.masks, bool)
    if 'panoptic' in outputs:
        values['panoptic'] = _array(sample.pred_panoptic_seg.sem_seg[0], np.int64)
    if 'semantic' in outputs:
        maps = sample.pred_sem_seg
        values['semantic'] = _array((maps.data if 'data' in maps else maps.sem_seg)[0], np.int64)
    if 'probabilities' in outputs:
        values['probabilities'] = _array(sample.pred_score, np.float32)
    return values


def read_values(
    raw: Mapping[str, np.ndarray], classes: Sequence[str], *, things: int | None, score: float
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The predictions of a :class:`Result`.

    Args:
        raw: Of :func:`read_sample`, or of an exported model.
        classes: Names of its classes.
        things: Number of its thing classes, of a panoptic model.
        score: Lowest score of an object.

    Returns:
        ``values`` and ``segments_info`` of :class:`Result`.
    """
    values = dict(raw)
    segments: list[dict[str, Any]] = []
    if 'boxes' in values:
        keep = values['scores'] >= score
        values |= {name: values[name][keep] for name in ('boxes', 'scores', 'labels', 'masks') if name in values}
    if 'panoptic' in values:
        values['panoptic'], segments = _read_segments(values['panoptic'], classes, things or 0)
    return values, segments


def _read_segments(ids: np.ndarray, classes: Sequence[str], things: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Mmdet's panoptic map as segment ids from 1, with a dict for each."""
    panoptic, segments = np.zeros(ids.shape, dtype=np.int32), []
    for one in np.unique(ids).tolist():
        label = one % INSTANCE_OFFSET
        if label >= len(classes):  # no segment
            continue
        mask = ids == one
        number = len(segments) + 1
        panoptic[mask] = number
        segments.append(
            {
                'id': number,
                'label': label,
                'name': classes[label],
                'is_thing': label < things,
                'area': int(mask.sum()),
            }
        )
    return panoptic, segments


def _array(tensor: Any, dtype: Any) -> np.ndarray:
    if hasattr(tensor, 'detach'):
        tensor = tensor.detach()
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return np.asarray(tensor).astype(dtype, copy=False)


def _box(mask: np.ndarray) -> list[float]:
    """The box x1, y1, x2, y2 around the pixels of a mask that has some."""
    x, y, width, height = mask_to_box(mask)
    return [float(x), float(y), float(x + width), float(y + height)]


def _innermost(mask: np.ndarray) -> tuple[int, int]:
    """The pixel x, y of a mask that is farthest from its border."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), mask.shape)
    return int(x), int(y)


def _encode(mask: np.ndarray) -> dict[str, Any]:
    """COCO's RLE of a mask, with counts as a string."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {'size': [int(side) for side in encoded['size']], 'counts': encoded['counts'].decode()}


def _number(found: Sequence[Any], one: str, several: str) -> str:
    return f'{len(found) or "no"} {one if len(found) == 1 else several}'
