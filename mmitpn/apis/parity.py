"""How far the predictions of an exported file are from those of the model it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from mmitpn.apis.results import Result

# What counts as the same prediction in fp32: pixels, score, IoU of masks, fraction of pixels of a label map.
LIMITS = {'boxes': 0.05, 'scores': 1e-3, 'masks': 0.999, 'pixels': 0.999}


@dataclass
class Parity:
    """The largest differences over all images that were compared.

    Attributes:
        images: Number of images.
        objects: Objects of the model above the score.
        unmatched: Of these, and of the file's, those without a partner of the same class and an IoU of 0.5.
        boxes: Largest difference of a coordinate, in pixels.
        scores: Largest difference of a score or probability.
        masks: Smallest IoU of the masks of two partners.
        pixels: Smallest fraction of pixels of an image with the same class or segment.
    """

    images: int = 0
    objects: int = 0
    unmatched: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    masks: float = 1.0
    pixels: float = 1.0
    _outputs: set[str] = field(default_factory=set)

    @property
    def is_equal(self) -> bool:
        """Whether all is within ``LIMITS``."""
        return (
            self.images > 0
            and self.unmatched == 0
            and self.boxes <= LIMITS['boxes']
            and self.scores <= LIMITS['scores']
            and self.masks >= LIMITS['masks']
            and self.pixels >= LIMITS['pixels']
        )

    def add(self, expected: Result, found: Result, *, score: float) -> None:
        """Compare the predictions for an image.

        Args:
            expected: Of the model.
            found: Of the file. Predict both with a lower limit than ``score``, so that partners with a score just below
                it are not lost.
            score: Objects of the model or the file above it need a partner.

        Raises:
            ValueError: If the two give other kinds of outputs.
        """
        if expected.outputs != found.outputs:
            raise ValueError(f'the model gives {expected.outputs}, the file {found.outputs}')
        self.images += 1
        self._outputs |= set(expected.outputs)
        if 'boxes' in expected.outputs:
            self._add_objects(expected, found, score)
        if 'semantic' in expected.outputs:
            self.pixels = min(self.pixels, float((expected.semantic == found.semantic).mean()))
        if 'panoptic' in expected.outputs:
            self.pixels = min(self.pixels, _same_segments(expected, found))
        if 'probabilities' in expected.outputs:
            self._add_scores(expected.probabilities, found.probabilities)

    def _add_scores(self, expected: np.ndarray, found: np.ndarray) -> None:
        if len(expected):
            self.scores = max(self.scores, float(np.abs(expected - found).max()))

    def _add_objects(self, expected: Result, found: Result, score: float) -> None:
        rows, columns = match_objects(expected, found)
        ours, theirs = expected.scores > score, found.scores > score
        self.objects += int(ours.sum())
        self.unmatched += int(ours.sum() - ours[rows].sum()) + int(theirs.sum() - theirs[columns].sum())
        counted = ours[rows] | theirs[columns]
        rows, columns = rows[counted], columns[counted]
        self._add_scores(expected.scores[rows], found.scores[columns])
        if len(rows):
            self.boxes = max(self.boxes, float(np.abs(expected.boxes[rows] - found.boxes[columns]).max()))
        if 'masks' in expected.outputs:
            for row, column in zip(rows, columns, strict=True):
                one, other = expected.masks[row], found.masks[column]
                union = (one | other).sum()
                self.masks = min(self.masks, float((one & other).sum() / union) if union else 1.0)

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and limit of what was compared, as text."""
        rows = [('images', str(self.images), '')]
        if 'boxes' in self._outputs:
            rows += [
                ('objects', str(self.objects), ''),
                ('without a partner', str(self.unmatched), '0'),
                ('boxes, pixels', f'{self.boxes:.4f}', f'{LIMITS["boxes"]}'),
            ]
        if {'boxes', 'probabilities'} & self._outputs:
            rows.append(('scores', f'{self.scores:.1e}', f'{LIMITS["scores"]}'))
        if 'masks' in self._outputs:
            rows.append(('masks, IoU', f'{self.masks:.5f}', f'{LIMITS["masks"]}'))
        if {'semantic', 'panoptic'} & self._outputs:
            rows.append(('equal pixels', f'{self.pixels:.3%}', f'{LIMITS["pixels"]:.1%}'))
        return rows


def match_objects(expected: Result, found: Result) -> tuple[np.ndarray, np.ndarray]:
    """Partners of the same class with the largest sum of IoU, each at least 0.5: indices of both."""
    if not len(expected.scores) or not len(found.scores):
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    iou = box_iou(torch.from_numpy(expected.boxes), torch.from_numpy(found.boxes)).numpy()
    # Several objects may have the same box: the nearest score decides.
    gain = iou - 0.1 * np.abs(expected.scores[:, None] - found.scores)
    gain[expected.labels[:, None] != found.labels] = -1.0
    rows, columns = linear_sum_assignment(-gain)
    kept = (gain[rows, columns] > -1.0) & (iou[rows, columns] >= 0.5)
    return rows[kept], columns[kept]


def _same_segments(expected: Result, found: Result) -> float:
    """Fraction of pixels in the same segment: ids may be counted in another order."""
    names = [{0: -1} | {one['id']: one['label'] for one in result.segments_info} for result in (expected, found)]
    pairs, counts = np.unique(np.stack([expected.panoptic, found.panoptic]).reshape(2, -1), axis=1, return_counts=True)
    table = np.zeros((len(names[0]), len(names[1])))
    keys = [list(one) for one in names]
    for (ours, theirs), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        if names[0][ours] == names[1][theirs]:
            table[keys[0].index(ours), keys[1].index(theirs)] = count
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / expected.panoptic.size)


def compare(pairs: Iterable[tuple[Result, Result]], *, score: float = 0.1) -> Parity:
    """Compare predictions of the model and the file for the same images; see :meth:`Parity.add`."""
    parity = Parity()
    for expected, found in pairs:
        parity.add(expected, found, score=score)
    return parity
