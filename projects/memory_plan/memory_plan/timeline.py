"""The memory of a training step over time, and its extrapolation from small steps to a size that was not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.profiler import ProfilerActivity, profile, record_function

from mmitpn.benchmark.memory import memory_events

MARK = 'mmitpn.memory_plan'
LARGE_BLOCK = 2**14  # bytes
SIDES = (128, 192, 256)  # pixels; multiples of 64, so that all maps of a pyramid have integer sizes
# Growth with pixels squared: its least fraction of the memory at the largest side, and its least excess over a line.
QUADRATIC_FRACTION, BEND = 0.01, 0.005


@dataclass(frozen=True)
class MemoryTimeline:
    """Memory of one forward and one backward pass in bytes, without parameters, buffers and optimizer states.

    The backward pass is divided where the gradient of a parameter is ready: the divisions are the same for all sizes.

    Attributes:
        activations: Allocated when the losses are computed: images, ground truth, and the graph's saved tensors.
        forward: Peak before that.
        names: Parameters that got a gradient, in this order.
        backward: Peaks up to each of these gradients, and after the last one, without the gradients that were ready
            before; one number more than ``names``.
        remaining: Allocated after the backward pass, without gradients.
        blocks: Size of an allocation -> number of them in the forward pass, for those of 16 KB and more.
    """

    activations: int
    forward: int
    names: tuple[str, ...]
    backward: tuple[int, ...]
    remaining: int
    blocks: Mapping[int, int]


def record_step(
    model: nn.Module, loss: Callable[[], Tensor], *, context: Callable[[], AbstractContextManager] = nullcontext
) -> MemoryTimeline:
    """Run one forward and backward pass on the CPU and record its memory, inside of operators too.

    Args:
        model: The model, on the CPU; its gradients are cleared before and after.
        loss: Makes the images, runs the forward pass and returns a scalar.
        context: Context manager of the forward pass, such as autocast.

    Raises:
        ValueError: If the loss is not a scalar with a gradient.
    """
    model.zero_grad(set_to_none=True)
    ready: dict[str, int] = {}

    def hook_of(name: str) -> Callable[[nn.Parameter], None]:
        def hook(parameter: nn.Parameter) -> None:
            if name not in ready:
                ready[name] = parameter.grad.untyped_storage().nbytes()
                with record_function(MARK):
                    pass

        return hook

    hooks = [
        parameter.register_post_accumulate_grad_hook(hook_of(name))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            with context():
                value = loss()
            if value.numel() != 1 or not value.requires_grad:
                raise ValueError(f'the loss of the step is {value!r}; it must be one number with a gradient')
            with record_function(MARK):
                pass
            # From a tensor, backward would run outside of torch function modes (GpuAutocast).
            torch.autograd.backward([get_gradient_edge(value)], [torch.ones_like(value)])
            with record_function(MARK):
                pass
            del value
    finally:
        for hook in hooks:
            hook.remove()
    model.zero_grad(set_to_none=True)
    changes, marks = memory_events(profiler, MARK)
    peaks, ends = _between(changes, marks)
    gradients = [0]
    for size in ready.values():
        gradients.append(gradients[-1] + size)
    # There are no gradients before the end of the forward pass; the last span is the end of the profiler itself.
    spans = zip(peaks[1:-1], gradients, strict=True)
    return MemoryTimeline(
        activations=ends[0],
        forward=peaks[0],
        names=tuple(ready),
        backward=tuple(peak - before for peak, before in spans),
        remaining=ends[-2] - gradients[-1],
        blocks=Counter(size for at, size in changes if at < marks[0] and size >= LARGE_BLOCK),
    )


def _between(changes: list[tuple[float, int]], marks: list[float]) -> tuple[list[int], list[int]]:
    """Peak memory in every span between marks, and the memory at its end."""
    peaks, ends = [], []
    allocated = peak = 0
    upcoming = iter([*marks, float('inf')])
    until = next(upcoming)
    for at, size in changes:
        while at >= until:
            peaks.append(peak)
            ends.append(allocated)
            peak, until = allocated, next(upcoming)
        allocated += size
        peak = max(peak, allocated)
    while len(peaks) <= len(marks):
        peaks.append(peak)
        ends.append(allocated)
        peak = allocated
    return peaks, ends


# --- from small steps to the real one -------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepSize:
    """Size of a training step.

    Attributes:
        size: Height and width of the images in pixels.
        batch: Number of images.
    """

    size: tuple[int, int]
    batch: int

    @property
    def pixels(self) -> int:
        """Of one image, padded to the 16 pixels of a patch."""
        height, width = (-(-side // 16) * 16 for side in self.size)
        return height * width

    def __str__(self) -> str:
        return f'{self.batch} x {"x".join(map(str, self.size))}'


@dataclass(frozen=True)
class StepPrediction:
    """Memory of a step that was not run.

    Attributes:
        timeline: Its memory over time.
        sizes: The steps that were run.
        quadratic: Whether a part of it grows with the square of the pixels, as unfused attention scores do.
        misfit: Largest relative difference between the fit and the steps that were run, in their activations.
    """

    timeline: MemoryTimeline
    sizes: tuple[StepSize, ...]
    quadratic: bool
    misfit: float


def choose_sizes(target: StepSize, *, least_batch: int = 1) -> tuple[StepSize, ...]:
    """The steps to run for a target.

    Args:
        target: Size of the real step.
        least_batch: Least number of images in a step: BatchNorm needs two where a map has a single position.

    Returns:
        Three sizes of square images and a second batch; where the target itself is small, its own size with up to
        three batches that are not larger than its own.
    """
    if target.pixels >= 2 * SIDES[-1] ** 2:
        squares = [StepSize((side, side), least_batch) for side in SIDES]
        return (*squares, StepSize(squares[0].size, least_batch + 1))
    first = min(least_batch, target.batch)
    batches = sorted({min(batch, target.batch) for batch in (first, 2 * first, 4 * first)})
    return tuple(StepSize(target.size, batch) for batch in batches)


def predict_step(timelines: Mapping[StepSize, MemoryTimeline], target: StepSize) -> StepPrediction:
    """Fit the steps that were run and extrapolate to the target.

    Every figure of a step is fitted by ``a + batch * (b + c * pixels)``, with a term ``d * batch * pixels ** 2`` where
    there are tensors that grow so. The backward pass is fitted span by span, so that its peak may be at another moment
    than in the small steps.

    Args:
        timelines: The steps of :func:`choose_sizes`.
        target: Size of the real step.
    """
    sizes = tuple(timelines)
    if target in timelines:
        return StepPrediction(timelines[target], sizes, quadratic=False, misfit=0.0)
    quadratic = _grows_quadratically(timelines)
    several_batches = len({size.batch for size in sizes}) > 1
    several_sizes = len({size.pixels for size in sizes}) > 1

    def terms(size: StepSize) -> list[float]:
        found = [1.0]
        if several_batches:
            found.append(size.batch)
        if several_sizes:
            found.append(size.batch * size.pixels)
        if several_sizes and quadratic:
            found.append(size.batch * float(size.pixels) ** 2)
        return found

    basis, wanted = np.array([terms(size) for size in sizes]), np.array(terms(target))
    scale = basis.max(axis=0)

    def fit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values ``(sizes, ...)`` to the fit at the target and at the sizes."""
        weights = np.linalg.lstsq(basis / scale, values, rcond=None)[0]
        return (wanted / scale) @ weights, (basis / scale) @ weights

    names = _common_names(list(timelines.values()))
    totals = np.array([[one.activations, one.forward, one.remaining] for one in timelines.values()], dtype=float)
    spans = np.array([_spans(one, names) for one in timelines.values()], dtype=float)
    (at_target, at_sizes), (backward, _) = fit(totals), fit(spans)
    # No span is lower than in the largest step that was run and is not larger than the target.
    smaller = [
        row
        for size, row in zip(sizes, spans, strict=True)
        if size.batch <= target.batch and size.pixels <= target.pixels
    ]
    backward = np.maximum(backward, np.max(smaller, axis=0)) if smaller else backward
    timeline = MemoryTimeline(
        activations=round(at_target[0]),
        forward=max(round(at_target[1]), round(at_target[0])),
        names=names,
        backward=tuple(round(value) for value in backward),
        remaining=max(round(at_target[2]), 0),
        blocks={},
    )
    misfit = float(np.max(np.abs(at_sizes[:, 0] / totals[:, 0] - 1)))
    return StepPrediction(timeline, sizes, quadratic=quadratic, misfit=misfit)


def _grows_quadratically(timelines: Mapping[StepSize, MemoryTimeline]) -> bool:
    """Whether memory grows with the square of the pixels, at three sizes.

    The number of detected objects and the like bend a curve too. So there must be blocks that grow so themselves, at
    least the same number at each size; and because such blocks may be there by chance, the curve must be bent.
    """
    batch = min(size.batch for size in timelines)
    runs = sorted(((size.pixels, one) for size, one in timelines.items() if size.batch == batch), key=itemgetter(0))
    if len(runs) < 3:
        return False
    (first, small), *larger = runs
    (middle, medium), (last, large) = larger
    found = 0
    for size, count in small.blocks.items():
        grown = [(size * pixels * pixels // (first * first), one) for pixels, one in larger]
        if all(one.blocks.get(block, 0) >= count for block, one in grown):
            found += grown[-1][0] * count
    straight = small.forward + (medium.forward - small.forward) * (last - first) / (middle - first)
    return found > QUADRATIC_FRACTION * large.activations and large.forward > (1 + BEND) * straight


def _common_names(timelines: list[MemoryTimeline]) -> tuple[str, ...]:
    """Parameters that got a gradient in every step, in the order of the last one."""
    common = set.intersection(*(set(one.names) for one in timelines))
    return tuple(name for name in timelines[-1].names if name in common)


def _spans(timeline: MemoryTimeline, names: tuple[str, ...]) -> list[int]:
    """The peaks up to each of ``names`` and after the last; those at other names count for the next of them."""
    wanted = set(names)
    peaks: dict[str, int] = {}
    highest = 0
    for name, peak in zip((*timeline.names, ''), timeline.backward, strict=True):
        highest = max(highest, peak)
        if name in wanted or not name:
            peaks[name], highest = highest, 0
    return [peaks[name] for name in (*names, '')]
