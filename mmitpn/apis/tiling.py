"""Predictions for a large image by tiles: objects that tiles cut are found once, and whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mmitpn.apis.results import Result, import_supervision

if TYPE_CHECKING:
    import supervision as sv

SAME = 0.5  # IoU inside the overlap of two tiles above which two boxes are of one object
INSIDE = 0.8  # fraction of a cut piece inside a larger box of another tile above which it is a part of it
EDGE = 3.0  # pixels from an edge of its tile at which an object counts as cut


def predict_tiled(
    image: np.ndarray, predict: Callable[[list[np.ndarray]], list[Result]], *, tile: int, overlap: float, batch: int
) -> dict[str, np.ndarray]:
    """Predict the objects of an image tile by tile, by ``supervision.InferenceSlicer``.

    The filters of the slicer suppress or merge boxes by their IoU, or by the fraction of the smaller one: an object
    that is larger than the overlap stays in pieces, since these have little in common. Here two boxes of neighboring
    tiles are one object if they agree inside the overlap of the tiles.

    Args:
        image: RGB, uint8 ``(H, W, 3)``.
        predict: Predicts some tiles, with boxes and perhaps masks.
        tile: Side of the tiles in pixels.
        overlap: Of neighboring tiles, as a fraction of ``tile``.
        batch: Number of tiles that are predicted at once.

    Returns:
        ``boxes``, ``scores``, ``labels`` and, if the model gives them, ``masks`` of the image, best first.
    """
    sv = import_supervision()
    raster = _Raster(image)

    def detect(tiles: Any) -> Any:
        results = predict([tiles] if isinstance(tiles, np.ndarray) else tiles)
        windows = raster.take_windows()
        found = []
        for result, window in zip(results, windows, strict=True):
            one = result.to_supervision()
            height, width = result.image.shape[:2]
            one.xyxy = one.xyxy.clip(0, [width, height, width, height])  # some detectors predict beyond the image
            one.data = {'tile': np.tile(np.array(window, dtype=np.float32), (len(one), 1))}
            found.append(one)
        return found[0] if isinstance(tiles, np.ndarray) else found

    slicer = sv.InferenceSlicer(
        detect,
        slice_wh=tile,
        overlap_wh=round(overlap * tile),
        overlap_filter=sv.OverlapFilter.NONE,
        thread_workers=1,  # windows are taken in the order of the results
        batch_size=batch,
    )
    return join_pieces(slicer(raster), image.shape[:2])


class _Raster:
    """An image as ``InferenceSlicer`` reads large files, which notes the windows that are read: x1, y1, x2, y2."""

    crs = None

    def __init__(self, image: np.ndarray) -> None:
        self.height, self.width = image.shape[:2]
        self._image = image
        self._windows: list[tuple[int, int, int, int]] = []

    def read(self, window: tuple[tuple[int, int], tuple[int, int]]) -> np.ndarray:
        (top, bottom), (left, right) = window
        self._windows.append((left, top, right, bottom))
        return self._image[top:bottom, left:right].transpose(2, 0, 1)

    def take_windows(self) -> list[tuple[int, int, int, int]]:
        windows, self._windows = self._windows, []
        return windows


def join_pieces(found: sv.Detections, size: Sequence[int]) -> dict[str, np.ndarray]:
    """Join what several tiles found of one object.

    Two boxes of one class from different tiles are of one object if, cut to the overlap of the tiles, their IoU is at
    least one half; this is transitive, so that an object may span many tiles. If a tile contains the whole object, the
    best such box and mask is kept; otherwise the pieces are united. The score is the best one. A piece that is cut by
    its tile and lies inside a larger box of another tile is left out, whatever its class.

    Args:
        found: All detections in pixels of the image, with the tile of each in ``data['tile']``: x1, y1, x2, y2.
        size: Height and width of the image.

    Returns:
        ``boxes``, ``scores``, ``labels``, and ``masks`` if there are some; best first.
    """
    height, width = size
    boxes, tiles = found.xyxy.astype(np.float32), found.data.get('tile', np.zeros((0, 4), dtype=np.float32))
    inner = tiles != np.array([0, 0, width, height])  # edges of a tile that are not the image's
    cut = ((np.abs(boxes - tiles) <= EDGE) & inner).any(axis=1)
    pairs = [(one, other) for one in range(len(boxes)) for other in _matches(one, boxes, tiles, found.class_id)]
    groups = _connected(len(boxes), pairs)

    united = boxes.copy()
    for members in groups:
        corners = boxes[members]
        united[members] = [*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)]
    absorbed = np.zeros(len(boxes), dtype=bool)
    for one in np.flatnonzero(cut):
        inside = _area(_intersect(boxes[one], united)) >= INSIDE * _area(boxes[one])
        others = (tiles != tiles[one]).any(axis=1) & (_area(united) > _area(united[one]))
        absorbed[one] = (inside & others).any()

    chosen: list[tuple[float, int, np.ndarray, np.ndarray | None]] = []
    for members in groups:
        if absorbed[members].all():
            continue
        best = members[np.argmax(found.confidence[members])]
        whole = [one for one in members if not cut[one]]
        kept = [max(whole, key=lambda one: found.confidence[one])] if whole else members
        box = boxes[kept[0]] if whole else united[best]
        mask = None if found.mask is None else np.logical_or.reduce(found.mask[kept])
        chosen.append((float(found.confidence[best]), int(found.class_id[best]), box, mask))
    chosen.sort(key=lambda one: -one[0])
    values = {
        'boxes': np.array([one[2] for one in chosen], dtype=np.float32).reshape(-1, 4),
        'scores': np.array([one[0] for one in chosen], dtype=np.float32),
        'labels': np.array([one[1] for one in chosen], dtype=np.int64),
    }
    if chosen and chosen[0][3] is not None:
        values['masks'] = np.stack([one[3] for one in chosen])
    return values


def _intersect(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersections of boxes ``(..., 4)``; where there is none, x2 <= x1 or y2 <= y1."""
    return np.concatenate(
        [np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])], axis=-1
    )


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1)


def _matches(one: int, boxes: np.ndarray, tiles: np.ndarray, labels: np.ndarray) -> list[int]:
    """The boxes of the same class from other tiles that agree with one inside the overlap of the two tiles."""
    shared = _intersect(tiles[one], tiles)
    mine, theirs = _intersect(boxes[one], shared), _intersect(boxes, shared)
    common = _area(_intersect(mine, theirs))
    agree = common >= SAME * np.maximum(_area(mine) + _area(theirs) - common, 1e-6)
    return np.flatnonzero(agree & (labels == labels[one]) & (tiles != tiles[one]).any(axis=1)).tolist()


def _connected(number: int, pairs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """The connected groups of ``number`` nodes, as arrays of their indices."""
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(number, number))
    count, group = connected_components(graph, directed=False)
    return [np.flatnonzero(group == index) for index in range(count)]
