"""The memory of a step at a size and batch that were not run, from steps that were: small pictures, few of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from .step_trace import StepTrace

SIDES = (128, 192, 256)  # pixels; multiples of 64, so that every map of the pyramids has a whole size
# Growth with pixels squared: from which share of the memory at the largest side on, and how far above a line.
QUADRATIC_SHARE, BEND = 0.01, 0.005


@dataclass(frozen=True)
class Point:
    """One step that is run.

    Attributes:
        size: Height and width of the pictures in pixels.
        batch: Pictures.
    """

    size: tuple[int, int]
    batch: int

    @property
    def pixels(self) -> int:
        """Of one picture, padded to the 16 pixels of a patch."""
        height, width = (-(-side // 16) * 16 for side in self.size)
        return height * width


@dataclass(frozen=True)
class Prediction:
    """A step at the size and batch asked for.

    Attributes:
        trace: When it holds how much.
        points: The steps that were run.
        quadratic: Whether something in it grows with the square of the pixels, as attention's scores do that are not
            fused.
        misfit: Largest difference between the fit and the steps run, in what they hold, as a share.
    """

    trace: StepTrace
    points: tuple[Point, ...]
    quadratic: bool
    misfit: float


def choose_points(target: Point, *, least_batch: int = 1) -> tuple[Point, ...]:
    """Which steps to run for a target.

    Args:
        target: Size and batch of the real training.
        least_batch: Pictures of a step, at least: BatchNorm wants two where a map has one place only.

    Returns:
        Three sizes of square pictures and a second batch; where the target itself is small, its own size with up to
        three batches that are not larger than its own.
    """
    if target.pixels >= 2 * SIDES[-1] ** 2:
        squares = [Point((side, side), least_batch) for side in SIDES]
        return (*squares, Point(squares[0].size, least_batch + 1))
    first = min(least_batch, target.batch)
    batches = sorted({min(batch, target.batch) for batch in (first, 2 * first, 4 * first)})
    return tuple(Point(target.size, batch) for batch in batches)


def predict_step(traces: Mapping[Point, StepTrace], target: Point) -> Prediction:
    """Fit what was run and go to the target.

    Every figure of a step is taken as ``a + batch * (b + c * pixels)``, with ``d * pixels ** 2`` beside them where
    tensors were seen that grow so. The backward pass is fitted span by span, so that its peak may come at another
    moment than in the small steps.

    Args:
        traces: The steps of :func:`choose_points`.
        target: Where to go.
    """
    points = tuple(traces)
    if target in traces:
        return Prediction(traces[target], points, quadratic=False, misfit=0.0)
    quadratic = _grows_quadratically(traces)
    several_batches = len({point.batch for point in points}) > 1
    several_sizes = len({point.pixels for point in points}) > 1

    def terms(point: Point) -> list[float]:
        found = [1.0]
        if several_batches:
            found.append(point.batch)
        if several_sizes:
            found.append(point.batch * point.pixels)
        if several_sizes and quadratic:
            found.append(point.batch * float(point.pixels) ** 2)
        return found

    basis, wanted = np.array([terms(point) for point in points]), np.array(terms(target))
    scale = basis.max(axis=0)

    def fit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values ``(points, ...)`` to those at the target and those that the fit has at the points."""
        weights = np.linalg.lstsq(basis / scale, values, rcond=None)[0]
        return (wanted / scale) @ weights, (basis / scale) @ weights

    names = _common_names(list(traces.values()))
    held = np.array([[trace.held, trace.forward, trace.left] for trace in traces.values()], dtype=float)
    spans = np.array([_spans(trace, names) for trace in traces.values()], dtype=float)
    (at_target, at_points), (backward, _) = fit(held), fit(spans)
    # No span is lower than it was in the largest step that was run and is not larger than the target.
    smaller = [
        row
        for point, row in zip(points, spans, strict=True)
        if point.batch <= target.batch and point.pixels <= target.pixels
    ]
    backward = np.maximum(backward, np.max(smaller, axis=0)) if smaller else backward
    trace = StepTrace(
        held=round(at_target[0]),
        forward=max(round(at_target[1]), round(at_target[0])),
        names=names,
        backward=tuple(round(value) for value in backward),
        left=max(round(at_target[2]), 0),
        blocks={},
    )
    misfit = float(np.max(np.abs(at_points[:, 0] / held[:, 0] - 1)))
    return Prediction(trace, points, quadratic=quadratic, misfit=misfit)


def _grows_quadratically(traces: Mapping[Point, StepTrace]) -> bool:
    """Whether memory grows with the square of the pixels, at three sizes.

    The number of objects found and the like bend a curve too. So blocks must be there, as many at each size at least,
    that grow so themselves; and as such blocks may be there by chance, the curve must be bent.
    """
    batch = min(point.batch for point in traces)
    runs = sorted(((point.pixels, trace) for point, trace in traces.items() if point.batch == batch), key=itemgetter(0))
    if len(runs) < 3:
        return False
    (first, small), *larger = runs
    (middle, medium), (last, large) = larger
    found = 0
    for size, count in small.blocks.items():
        grown = [(size * pixels * pixels // (first * first), trace) for pixels, trace in larger]
        if all(trace.blocks.get(block, 0) >= count for block, trace in grown):
            found += grown[-1][0] * count
    straight = small.forward + (medium.forward - small.forward) * (last - first) / (middle - first)
    return found > QUADRATIC_SHARE * large.held and large.forward > (1 + BEND) * straight


def _common_names(traces: list[StepTrace]) -> tuple[str, ...]:
    """Parameters that got a gradient in every step, in the order of the last one."""
    common = set.intersection(*(set(trace.names) for trace in traces))
    return tuple(name for name in traces[-1].names if name in common)


def _spans(trace: StepTrace, names: tuple[str, ...]) -> list[int]:
    """The peaks up to each of ``names`` and after the last; what lies at other names counts with the next of them."""
    wanted = set(names)
    peaks: dict[str, int] = {}
    most = 0
    for name, peak in zip((*trace.names, ''), trace.backward, strict=True):
        most = max(most, peak)
        if name in wanted or not name:
            peaks[name], most = most, 0
    return [peaks[name] for name in (*names, '')]
