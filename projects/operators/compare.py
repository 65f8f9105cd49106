r"""Accuracy and speed of the operators of mmitpn.ops on a CPU, against those of a compiled mmcv.

    python projects/operators/compare.py --accuracy
    python projects/operators/compare.py --speed --threads 2 --rounds 15 --out comparison.md
    python projects/operators/compare.py --accuracy --speed --only nms roi_align --json

The mmcv of the environment must be compiled. Without --accuracy and --speed both are done. Accuracy: both get the same
random inputs; the table has the largest difference, divided by the largest value of mmcv's result. Speed: both run in
turns in one process; a ratio is our time divided by mmcv's, the median over the rounds, with the smallest and the
largest. Progress goes to stderr. README.md in this folder says more.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from mmitpn.ops import extension
from mmitpn.ops.deformable_attention import sample_levels
from mmitpn.ops.install import COMPILED, status

Results = dict[str, Tensor]
# Runs operators of mmcv._ext or of mmitpn.ops.extension on inputs that were prepared before.
Step = Callable[[ModuleType], Results]
Steps = dict[str, Step]

SINGLE, BOTH = (torch.float32,), (torch.float32, torch.float64)
ROUND_SECONDS = 0.05  # one round of a quick operator repeats its call for at least this time
IMAGE = (800, 1333)


class AccuracyRow(NamedTuple):
    """One row of the table of accuracy: an operator, or one way to call it."""

    label: str
    prepare: Callable[..., Steps]
    settings: dict[str, list[Any]]
    """Arguments of ``prepare``: every combination of their values is a case."""
    dtypes: tuple[torch.dtype, ...] = BOTH
    """Those that the compiled operator takes."""

    def cases(self) -> Iterator[dict[str, Any]]:
        """Arguments of ``prepare`` of one case after the other."""
        for values in itertools.product(*self.settings.values()):
            yield dict(zip(self.settings, values, strict=True))


class SpeedRow(NamedTuple):
    """One or more rows of the table of speed: an operator at one size."""

    label: str
    prepare: Callable[..., Steps]
    settings: dict[str, Any]


class OperatorWithoutKernel(NamedTuple):
    """An operator without a CPU kernel in mmcv: how it is called, and what the tests compare it with."""

    call: Callable[[], object]
    checked_against: str
    test: str


# --- inputs -----------------------------------------------------------------------------------------------------------
def uniform(random: Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Random float64 numbers of an interval."""
    return torch.rand(shape, generator=random, dtype=torch.float64) * (high - low) + low


def normal(random: Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Normally distributed numbers."""
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def distinct_scores(random: Generator, count: int, dtype: torch.dtype) -> Tensor:
    """Scores of which no two are equal: the order of equal ones is that of ``Tensor.sort``."""
    return ((torch.randperm(count, generator=random) + 1) / (count + 1)).to(dtype)


def random_boxes(random: Generator, count: int, dtype: torch.dtype, *, integers: bool = False) -> Tensor:
    """Boxes ``(count, 4)`` in an image of 800 x 1333; of integers, every fifth has no area and some are equal."""
    corner = uniform(random, count, 2) * torch.tensor([IMAGE[1], IMAGE[0]])
    boxes = torch.cat((corner, corner + uniform(random, count, 2, low=16, high=256)), 1)
    if integers:
        boxes = boxes.round()
        boxes[::5, 2:] = boxes[::5, :2]
        boxes[count // 2 :][: count // 4] = boxes[: count // 4]
    return boxes.to(dtype)


def random_rotated_boxes(random: Generator, count: int, dtype: torch.dtype) -> Tensor:
    """Boxes ``(count, 5)``: center, width, height, angle in radians."""
    limits = torch.tensor([100.0, 100, 60, 30, 2 * math.pi], dtype=torch.float64)
    return ((uniform(random, count, 5) + 0.01) * limits).to(dtype)


def random_rois(random: Generator, count: int, shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> Tensor:
    """Boxes ``(count, 5)`` in and around maps ``(B, C, H, W)``: image, x1, y1, x2, y2."""
    size = torch.tensor([shape[3], shape[2]], dtype=torch.float64) / scale
    corner = uniform(random, count, 2, low=-0.15, high=1.15) * size
    far = corner + uniform(random, count, 2) * size
    image = torch.randint(0, shape[0], (count, 1), generator=random)
    return torch.cat((image, corner, far), 1).to(dtype)


# --- operators --------------------------------------------------------------------------------------------------------
# Each function prepares inputs and returns what runs the operators. Results whose name begins with "gradient" go to
# the table's column of gradients, integers to that of indices.
def nms(
    random: Generator, dtype: torch.dtype, *, count: int, threshold: float, offset: int, integers: bool = False
) -> Steps:
    """``nms``."""
    boxes, scores = random_boxes(random, count, dtype, integers=integers), distinct_scores(random, count, dtype)
    return {'forward': lambda ext: {'indices': ext.nms(boxes, scores, iou_threshold=threshold, offset=offset)}}


def softnms(
    random: Generator, dtype: torch.dtype, *, count: int, method: int, offset: int, integers: bool = False
) -> Steps:
    """``softnms``."""
    boxes, scores = random_boxes(random, count, dtype, integers=integers), distinct_scores(random, count, dtype)
    settings = {'iou_threshold': 0.3, 'sigma': 0.5, 'min_score': 0.05, 'method': method, 'offset': offset}

    def forward(ext: ModuleType) -> Results:
        dets = boxes.new_zeros(count, 5)
        indices = ext.softnms(boxes, scores, dets, **settings)
        return {'indices': indices, 'boxes': dets[: len(indices), :4], 'scores': dets[: len(indices), 4]}

    return {'forward': forward}


def nms_match(random: Generator, dtype: torch.dtype, *, count: int, threshold: float, integers: bool = False) -> Steps:
    """``nms_match``."""
    boxes, scores = random_boxes(random, count, dtype, integers=integers), distinct_scores(random, count, dtype)
    dets = torch.cat((boxes, scores[:, None]), 1)

    def forward(ext: ModuleType) -> Results:
        groups = ext.nms_match(dets, iou_threshold=threshold)
        # Each group ends with -1.
        return {'indices': torch.tensor([index for group in groups for index in (*group, -1)], dtype=torch.long)}

    return {'forward': forward}


def bbox_overlaps(random: Generator, dtype: torch.dtype, *, count: int, mode: int, aligned: bool, offset: int) -> Steps:
    """``bbox_overlaps``."""
    first = random_boxes(random, count, dtype)
    second = random_boxes(random, count if aligned else 2 * count + 1, dtype)

    def forward(ext: ModuleType) -> Results:
        overlaps = first.new_zeros((count,) if aligned else (count, len(second)))
        ext.bbox_overlaps(first, second, overlaps, mode=mode, aligned=aligned, offset=offset)
        return {'overlaps': overlaps}

    return {'forward': forward}


def box_iou_rotated(random: Generator, dtype: torch.dtype, *, count: int, mode: int, aligned: bool) -> Steps:
    """``box_iou_rotated``."""
    first = random_rotated_boxes(random, count, dtype)
    second = random_rotated_boxes(random, count if aligned else 2 * count + 1, dtype)

    def forward(ext: ModuleType) -> Results:
        overlaps = first.new_zeros(count if aligned else count * len(second))
        ext.box_iou_rotated(first, second, overlaps, mode_flag=mode, aligned=aligned)
        return {'overlaps': overlaps}

    return {'forward': forward}


def nms_rotated(random: Generator, dtype: torch.dtype, *, count: int, threshold: float) -> Steps:
    """``nms_rotated``."""
    boxes, scores = random_rotated_boxes(random, count, dtype), distinct_scores(random, count, dtype)
    order = scores.sort(descending=True)[1]
    ordered, labels = boxes[order], torch.zeros(0, dtype=torch.int)
    return {
        'forward': lambda ext: {'indices': ext.nms_rotated(boxes, scores, order, ordered, labels, threshold, 0)},
    }


def roi_align(
    random: Generator,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    pooled: tuple[int, int],
    ratio: int,
    mode: int,
    aligned: bool = True,
    scale: float = 0.25,
    count: int | None = None,
    rois: Callable[[Generator], Tensor] | None = None,
) -> Steps:
    """``roi_align_forward`` and ``roi_align_backward``; the backward pass of the maximum gets our positions."""
    maps = normal(random, *shape, dtype=dtype)
    boxes = random_rois(random, count, shape, scale, dtype) if rois is None else rois(random).to(dtype)
    grad = normal(random, len(boxes), shape[1], *pooled, dtype=dtype)
    settings = {
        'aligned_height': pooled[0],
        'aligned_width': pooled[1],
        'spatial_scale': scale,
        'sampling_ratio': ratio,
        'pool_mode': mode,
        'aligned': aligned,
    }

    def forward(ext: ModuleType) -> Results:
        output = torch.zeros_like(grad)
        y, x = (output.new_zeros(output.shape if mode == 0 else 0) for _ in range(2))
        ext.roi_align_forward(maps, boxes, output, y, x, **settings)
        return {'output': output, 'y': y, 'x': x}

    _, y, x = forward(extension).values()

    def backward(ext: ModuleType) -> Results:
        of_maps = torch.zeros_like(maps)
        ext.roi_align_backward(grad, boxes, y, x, of_maps, **settings)
        return {'gradient of the maps': of_maps}

    return {'forward': forward, 'backward': backward}


def roi_align_rotated(
    random: Generator,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    count: int,
    ratio: int,
    aligned: bool,
    clockwise: bool,
) -> Steps:
    """``roi_align_rotated_forward`` and ``roi_align_rotated_backward``."""
    pooled, scale = (3, 4), 0.25
    maps, grad = normal(random, *shape, dtype=dtype), normal(random, count, shape[1], *pooled, dtype=dtype)
    centers_and_sizes = uniform(random, count, 4) * torch.tensor([shape[3], shape[2], shape[3], shape[2]]) / scale
    image = torch.randint(0, shape[0], (count, 1), generator=random)
    angle = uniform(random, count, 1, low=-math.pi, high=math.pi)
    boxes = torch.cat((image, centers_and_sizes, angle), 1).to(dtype)
    settings = (*pooled, scale, ratio, aligned, clockwise)

    def forward(ext: ModuleType) -> Results:
        output = torch.zeros_like(grad)
        ext.roi_align_rotated_forward(maps, boxes, output, *settings)
        return {'output': output}

    def backward(ext: ModuleType) -> Results:
        of_maps = torch.zeros_like(maps)
        ext.roi_align_rotated_backward(grad, boxes, of_maps, *settings)
        return {'gradient of the maps': of_maps}

    return {'forward': forward, 'backward': backward}


class Convolution(NamedTuple):
    """Settings of a deformable convolution; pairs are (height, width)."""

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(size, *self[:4], strict=True)
        )
        return height, width

    def numbers(self, *, width_first: bool) -> tuple[int, ...]:
        """What the operators take after the tensors."""
        pairs = [pair[::-1] if width_first else pair for pair in self[:4]]
        return (*itertools.chain(*pairs), self.groups, self.offset_groups)


UNEVEN = Convolution((2, 3), (2, 1), (1, 2), (2, 1), groups=2, offset_groups=4)
"""No two numbers of an axis are those of the other; groups of the weights and of the offsets."""


def convolution_inputs(
    random: Generator,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    out_channels: int,
    spread: float,
    settings: Convolution,
) -> tuple[Tensor, ...]:
    """Maps, weight, bias, offset, mask and gradient of the output; ``spread`` is the offsets' deviation in cells."""
    size = settings.output_size(shape[2:])
    samples = settings.offset_groups * math.prod(settings.kernel)
    return (
        normal(random, *shape, dtype=dtype),
        normal(random, out_channels, shape[1] // settings.groups, *settings.kernel, dtype=dtype),
        normal(random, out_channels, dtype=dtype),
        normal(random, shape[0], 2 * samples, *size, dtype=dtype) * spread,
        uniform(random, shape[0], samples, *size).to(dtype),
        normal(random, shape[0], out_channels, *size, dtype=dtype),
    )


def deform_conv(
    random: Generator,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    out_channels: int,
    spread: float,
    settings: Convolution,
) -> Steps:
    """``deform_conv_forward``, ``deform_conv_backward_input`` and ``deform_conv_backward_parameters``."""
    maps, weight, _, offset, _, grad = convolution_inputs(random, dtype, shape, out_channels, spread, settings)
    numbers, at_once = settings.numbers(width_first=True), min(shape[0], 32)  # mmcv's layer has 32

    def buffers() -> tuple[Tensor, Tensor]:
        return maps.new_empty(0), maps.new_empty(0)

    def forward(ext: ModuleType) -> Results:
        output = torch.empty_like(grad)
        ext.deform_conv_forward(maps, weight, offset, output, *buffers(), *numbers, at_once)
        return {'output': output}

    def backward(ext: ModuleType) -> Results:
        of_maps, of_offset, of_weight = (torch.zeros_like(tensor) for tensor in (maps, offset, weight))
        ext.deform_conv_backward_input(
            maps, offset, grad, of_maps, of_offset, weight, maps.new_empty(0), *numbers, at_once
        )
        ext.deform_conv_backward_parameters(maps, offset, grad, of_weight, *buffers(), *numbers, 1.0, at_once)
        return {'gradient of the maps': of_maps, 'gradient of offset': of_offset, 'gradient of weight': of_weight}

    return {'forward': forward, 'backward': backward}


def modulated_deform_conv(
    random: Generator,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...],
    out_channels: int,
    spread: float,
    settings: Convolution,
    with_bias: bool = True,
) -> Steps:
    """``modulated_deform_conv_forward`` and ``modulated_deform_conv_backward``."""
    maps, weight, bias, offset, mask, grad = convolution_inputs(random, dtype, shape, out_channels, spread, settings)
    numbers = (*settings.numbers(width_first=False), with_bias)

    def forward(ext: ModuleType) -> Results:
        output, ones, columns = torch.empty_like(grad), maps.new_empty(0), maps.new_empty(0)
        ext.modulated_deform_conv_forward(maps, weight, bias, ones, offset, mask, output, columns, *numbers)
        return {'output': output}

    def backward(ext: ModuleType) -> Results:
        inputs = {'the maps': maps, 'weight': weight, 'bias': bias, 'offset': offset, 'mask': mask}
        gradients = {f'gradient of {name}': torch.zeros_like(tensor) for name, tensor in inputs.items()}
        ones, columns = maps.new_empty(0), maps.new_empty(0)
        ext.modulated_deform_conv_backward(
            maps, weight, bias, ones, offset, mask, columns, *gradients.values(), grad, *numbers
        )
        return gradients

    return {'forward': forward, 'backward': backward}


def psamask(random: Generator, dtype: torch.dtype, *, kind: int, size: tuple[int, int], mask: tuple[int, int]) -> Steps:
    """``psamask_forward`` and ``psamask_backward``."""
    masks, cells = normal(random, 2, math.prod(mask), *size, dtype=dtype), math.prod(size)
    grad = normal(random, 2, cells, *size, dtype=dtype)
    settings = (kind, 2, *size, *mask, (mask[0] - 1) // 2, (mask[1] - 1) // 2)

    def forward(ext: ModuleType) -> Results:
        output = torch.zeros_like(grad)
        ext.psamask_forward(masks, output, *settings)
        return {'output': output}

    def backward(ext: ModuleType) -> Results:
        of_masks = torch.zeros_like(masks)
        ext.psamask_backward(grad, of_masks, *settings)
        return {'gradient of the masks': of_masks}

    return {'forward': forward, 'backward': backward}


@functools.cache
def attention_is_compiled() -> bool:
    """Whether mmcv's ``ms_deform_attn_forward`` has a CPU kernel."""
    return error_of(operators_without_kernel()['ms_deform_attn'].call) is None


def deformable_attention(
    random: Generator,
    dtype: torch.dtype,
    *,
    shapes: list[list[int]],
    queries: int,
    batch: int = 1,
    heads: int = 8,
    channels: int = 32,
) -> Steps:
    """Deformable attention with 4 points a level, against mmcv's PyTorch function if mmcv has no CPU kernel."""
    from mmcv.ops import multi_scale_deform_attn as mmcv_attention

    cells = [height * width for height, width in shapes]
    value = normal(random, batch, sum(cells), heads, channels, dtype=dtype)
    where = uniform(random, batch, queries, heads, len(shapes), 4, 2, low=-0.1, high=1.1).to(dtype)
    weights = normal(random, batch, queries, heads, len(shapes) * 4, dtype=dtype).softmax(-1)
    inputs = [tensor.requires_grad_() for tensor in (value, where, weights.unflatten(-1, (len(shapes), 4)))]
    grad = normal(random, batch, queries, heads * channels, dtype=dtype)
    sizes = torch.tensor(shapes)
    starts = torch.tensor([sum(cells[:level]) for level in range(len(cells))])

    def both(ext: ModuleType) -> Results:
        if ext is extension:
            output = sample_levels(inputs[0], shapes, *inputs[1:])
        elif attention_is_compiled():
            output = mmcv_attention.MultiScaleDeformableAttnFunction.apply(inputs[0], sizes, starts, *inputs[1:], 64)
        else:
            output = mmcv_attention.multi_scale_deformable_attn_pytorch(inputs[0], sizes, *inputs[1:])
        gradients = torch.autograd.grad(output, inputs, grad)
        names = ('gradient of value', 'gradient of points', 'gradient of weights')
        return {'output': output.detach(), **dict(zip(names, gradients, strict=True))}

    return {'forward and backward': both}


# --- what is compared -------------------------------------------------------------------------------------------------
COUNTS = [0, 1, 7, 101, 1000]
MAPS = [(1, 1, 1, 1), (2, 3, 9, 13), (1, 8, 50, 83)]
NMS = {'count': COUNTS, 'integers': [False, True]}
ALIGN = {'shape': MAPS, 'count': [0, 1, 33], 'ratio': [0, 2], 'aligned': [False, True]}
CONVOLUTION = {
    'shape': [(1, 4, 3, 5), (2, 8, 13, 9)],
    'out_channels': [6],
    'spread': [0.0, 0.7, 5.0],
    'settings': [Convolution(), UNEVEN],
}
ACCURACY_ROWS = (
    AccuracyRow('nms, offset 0', nms, NMS | {'threshold': [0.1, 0.5, 0.7], 'offset': [0]}, SINGLE),
    AccuracyRow('nms, offset 1', nms, NMS | {'threshold': [0.1, 0.5, 0.7], 'offset': [1]}, SINGLE),
    AccuracyRow('softnms, naive', softnms, NMS | {'method': [0], 'offset': [0, 1]}, SINGLE),
    AccuracyRow('softnms, linear', softnms, NMS | {'method': [1], 'offset': [0, 1]}, SINGLE),
    AccuracyRow('softnms, Gaussian', softnms, NMS | {'method': [2], 'offset': [0, 1]}, SINGLE),
    AccuracyRow('nms_match', nms_match, NMS | {'threshold': [0.1, 0.5]}, SINGLE),
    AccuracyRow(
        'bbox_overlaps',
        bbox_overlaps,
        {'count': [0, 1, 7, 301], 'mode': [0, 1], 'aligned': [False, True], 'offset': [0, 1]},
    ),
    AccuracyRow(
        'box_iou_rotated', box_iou_rotated, {'count': [0, 1, 7, 101], 'mode': [0, 1], 'aligned': [False, True]}, SINGLE
    ),
    AccuracyRow('nms_rotated', nms_rotated, {'count': [0, 1, 7, 201], 'threshold': [0.1, 0.5]}),
    AccuracyRow('roi_align, average', roi_align, ALIGN | {'pooled': [(7, 7), (3, 2)], 'mode': [1]}),
    AccuracyRow('roi_align, maximum', roi_align, ALIGN | {'pooled': [(7, 7), (3, 2)], 'mode': [0]}),
    AccuracyRow('roi_align_rotated', roi_align_rotated, ALIGN | {'clockwise': [False, True]}),
    AccuracyRow('deform_conv', deform_conv, CONVOLUTION),
    AccuracyRow('modulated_deform_conv', modulated_deform_conv, CONVOLUTION | {'with_bias': [False, True]}),
    AccuracyRow(
        'psamask',
        psamask,
        {'kind': [0, 1], 'size': [(1, 1), (5, 4), (13, 9)], 'mask': [(1, 1), (5, 7), (4, 3)]},
    ),
    AccuracyRow(
        'deformable attention',
        deformable_attention,
        {
            'shapes': [[[1, 1]], [[13, 9], [7, 5]], [[25, 42], [13, 21], [7, 11], [4, 6]]],
            'queries': [1, 33],
            'batch': [1, 2],
            'channels': [8],
        },
    ),
)


def fpn_rois(random: Generator) -> Tensor:
    """1,000 boxes with sides of 32 to 256 pixels in an image of 800 x 1333."""
    corner = uniform(random, 1000, 2) * torch.tensor([IMAGE[1] - 256, IMAGE[0] - 256])
    far = corner + uniform(random, 1000, 2, low=32, high=256)
    return torch.cat((torch.zeros(1000, 1), corner, far), 1)


def levels(height: int, width: int) -> list[list[int]]:
    """Maps of strides 8 to 64 of an image."""
    return [[math.ceil(height / stride), math.ceil(width / stride)] for stride in (8, 16, 32, 64)]


POOL = {'shape': (1, 256, *levels(*IMAGE)[0]), 'pooled': (7, 7), 'ratio': 0, 'scale': 1 / 8, 'rois': fpn_rois}
STAGE = {'shape': (1, 256, 50, 84), 'out_channels': 256, 'spread': 1.0, 'settings': Convolution()}
SPEED_ROWS = (
    SpeedRow(
        'deformable attention, 900 queries, maps of 800 x 1333',
        deformable_attention,
        {'shapes': levels(*IMAGE), 'queries': 900},
    ),
    SpeedRow(
        'deformable attention, every cell a query, maps of 400 x 667',
        deformable_attention,
        {'shapes': levels(400, 667), 'queries': sum(height * width for height, width in levels(400, 667))},
    ),
    *(
        SpeedRow(f'nms, {count:,} boxes, offset {offset}', nms, {'count': count, 'threshold': 0.5, 'offset': offset})
        for offset, count in itertools.product((0, 1), (1000, 20000))
    ),
    *(
        SpeedRow(f'softnms, {name}, 1,000 boxes', softnms, {'count': 1000, 'method': method, 'offset': 0})
        for method, name in enumerate(('naive', 'linear', 'Gaussian'))
    ),
    SpeedRow('nms_match, 1,000 boxes', nms_match, {'count': 1000, 'threshold': 0.5}),
    SpeedRow('roi_align, average, 1,000 boxes, 256 x 100 x 167', roi_align, POOL | {'mode': 1}),
    SpeedRow('roi_align, maximum, 1,000 boxes, 256 x 100 x 167', roi_align, POOL | {'mode': 0}),
    SpeedRow('deform_conv 3 x 3, 256 x 50 x 84', deform_conv, STAGE),
    SpeedRow('modulated_deform_conv 3 x 3, 256 x 50 x 84', modulated_deform_conv, STAGE),
)


# --- operators without a CPU kernel in mmcv ---------------------------------------------------------------------------
def operators_without_kernel() -> dict[str, OperatorWithoutKernel]:
    """Small calls of the operators that had no CPU kernel in mmcv 2.3.6, which show whether they have one now."""
    maps, rois = torch.zeros(1, 8, 5, 6), torch.tensor([[0, 1.0, 1, 4, 3]])
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 2])
    upsampling = maps, torch.zeros(1, 25, 10, 12), 5, 1, 2
    loop = 'the definition in float64, finite differences'

    def call(module: str, name: str, *args: Any) -> Callable[[], object]:
        """A call of a function of ``mmcv.ops`` or ``mmcv._ext``."""
        return lambda: getattr(import_module(module), name)(*args)

    function, compiled = functools.partial(call, 'mmcv.ops'), functools.partial(call, 'mmcv._ext')
    one_map = torch.zeros(1, 1, 1, 4), torch.tensor([[1, 1]]), torch.tensor([0])
    one_query = torch.zeros(1, 1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)
    masked = maps, torch.ones(1, 5, 6), torch.zeros(4, 8, 3, 3), torch.zeros(4), 1
    return {
        'border_align': OperatorWithoutKernel(
            function('border_align', maps, torch.zeros(1, 30, 4), 3), loop, 'test_roi.py'
        ),
        'carafe': OperatorWithoutKernel(function('carafe', *upsampling), loop, 'test_sampling.py'),
        'carafe_naive': OperatorWithoutKernel(function('carafe_naive', *upsampling), loop, 'test_sampling.py'),
        'deform_roi_pool': OperatorWithoutKernel(function('deform_roi_pool', maps, rois, None, 2), loop, 'test_roi.py'),
        'line_nms': OperatorWithoutKernel(
            compiled('line_nms_forward', torch.zeros(2, 77), torch.zeros(2), 1.0, 2),
            'the definition, one lane after the other',
            'test_boxes.py',
        ),
        'masked_im2col, masked_col2im': OperatorWithoutKernel(
            function('masked_conv2d', *masked), 'a dense convolution', 'test_sampling.py'
        ),
        'ms_deform_attn': OperatorWithoutKernel(
            compiled('ms_deform_attn_forward', *one_map, *one_query, 64),
            f'{loop}, `grid_sample`',
            'test_deformable_attention.py',
        ),
        'prroi_pool': OperatorWithoutKernel(function('prroi_pool', maps, rois, (2, 2), 1.0), loop, 'test_roi.py'),
        'roi_pool': OperatorWithoutKernel(function('roi_pool', maps, rois, 2), loop, 'test_roi.py'),
        'sigmoid_focal_loss': OperatorWithoutKernel(
            function('sigmoid_focal_loss', logits, labels), loop, 'test_focal_loss.py'
        ),
        'softmax_focal_loss': OperatorWithoutKernel(
            function('softmax_focal_loss', logits, labels), loop, 'test_focal_loss.py'
        ),
        'sync_bn': OperatorWithoutKernel(
            compiled('sync_bn_forward_mean', torch.zeros(2, 3, 4), torch.zeros(3)),
            "PyTorch's batch norm",
            'test_sync_bn.py',
        ),
    }


def error_of(call: Callable[[], object]) -> str | None:
    """Why mmcv cannot run an operator on a CPU: ``'none'`` without a kernel, else the error; None if it can."""
    try:
        call()
    except (AttributeError, RuntimeError) as error:
        message = str(error).partition('\n')[0]
        return 'none' if re.search('device cpu not found|must be a CUDA tensor', message) else message
    return None


# --- accuracy ---------------------------------------------------------------------------------------------------------
class Difference(NamedTuple):
    """Our result beside that of the compiled operator."""

    column: str
    """``'indices'``, ``'output'`` or ``'gradients'``."""
    relative: float
    """Largest difference divided by the largest value; infinite for another shape, NaN or infinity elsewhere, or other
    integers."""


def difference(name: str, ours: Tensor, theirs: Tensor) -> Difference:
    """Compare one result; equal NaN and equal infinities are equal."""
    if not theirs.is_floating_point():
        return Difference('indices', 0.0 if torch.equal(ours, theirs) else math.inf)
    column = 'gradients' if name.startswith('gradient') else 'output'
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return Difference(column, math.inf)
    finite = theirs.isfinite() & ours.isfinite()
    if not torch.allclose(ours[~finite], theirs[~finite], rtol=0, atol=0, equal_nan=True):
        return Difference(column, math.inf)
    if not finite.any():
        return Difference(column, 0.0)
    largest, apart = theirs[finite].abs().max().item(), (ours - theirs)[finite].abs().max().item()
    return Difference(column, apart / largest if largest else math.inf if apart else 0.0)


def measure_accuracy(operator: AccuracyRow, theirs: ModuleType, seeds: int) -> dict[str, Any]:
    """Run all cases of one row of the table with some seeds.

    Returns:
        ``operator``, ``cases``, ``different_indices`` (None without integers), and for each dtype a dictionary of the
        largest relative difference of ``output`` and ``gradients``.
    """
    row: dict[str, Any] = {'operator': operator.label, 'cases': 0, 'different_indices': None}
    for dtype in operator.dtypes:
        largest = row[str(dtype).removeprefix('torch.')] = {}
        for settings, seed in itertools.product(operator.cases(), range(seeds)):
            steps = operator.prepare(Generator().manual_seed(seed), dtype, **settings)
            row['cases'] += 1
            different = False
            for step in steps.values():
                expected = step(theirs)
                for name, ours in step(extension).items():
                    column, relative = difference(name, ours, expected[name])
                    if column == 'indices':
                        row['different_indices'] = row['different_indices'] or 0
                        different |= relative > 0
                    else:
                        largest[column] = max(largest.get(column, 0.0), relative)
            row['different_indices'] = row['different_indices'] + 1 if different else row['different_indices']
    return row


def accuracy_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the table of accuracy, the heading first."""

    def number(row: dict[str, Any], dtype: str, column: str) -> str:
        value = row.get(dtype, {}).get(column)
        return '' if value is None else '0' if value == 0 else f'{value:.0e}'

    def indices(row: dict[str, Any]) -> str:
        different = row['different_indices']
        return '' if different is None else 'equal' if different == 0 else f'{different} cases differ'

    columns = [(dtype, column) for dtype in ('float32', 'float64') for column in ('output', 'gradients')]
    table = [['operator', 'cases', 'indices', *(f'{column}, {dtype}' for dtype, column in columns)]]
    for row in rows:
        numbers = (number(row, *column) for column in columns)
        table.append([row['operator'], str(row['cases']), indices(row), *numbers])
    return table


def without_kernel_table() -> list[list[str]]:
    """Cells of the table of operators without a CPU kernel, the heading first; each is called once to find out."""
    table = [['operator', 'CPU kernel in this mmcv', 'the tests compare with', 'in']]
    for name, operator in operators_without_kernel().items():
        kernel = error_of(operator.call) or 'there is one, not compared here'
        table.append([name, kernel, operator.checked_against, f'tests/ops/{operator.test}'])
    return table


# --- speed ------------------------------------------------------------------------------------------------------------
def seconds(step: Step, ext: ModuleType, calls: int) -> float:
    """Time of one call, the mean of some."""
    start = time.perf_counter()
    for _ in range(calls):
        step(ext)
    return (time.perf_counter() - start) / calls


def measure_speed(operator: SpeedRow, theirs: ModuleType, rounds: int) -> Iterator[dict[str, Any]]:
    """Time the steps of an operator, ours and mmcv's in turns; who begins changes with every round.

    Yields:
        For each step ``operator``, the medians ``mmitpn_ms`` and ``mmcv_ms``, and ``ratio`` (ours to mmcv's of one
        round: the median, ``smallest`` and ``largest``).
    """
    steps = operator.prepare(Generator().manual_seed(0), torch.float32, **operator.settings)
    for name, step in steps.items():
        slower = max(seconds(step, ext, 1) for ext in (extension, theirs, extension, theirs))
        calls = max(1, math.ceil(ROUND_SECONDS / slower))
        times = []
        for number in range(rounds):
            order = (extension, theirs) if number % 2 == 0 else (theirs, extension)
            first, second = (seconds(step, ext, calls) for ext in order)
            times.append((first, second) if number % 2 == 0 else (second, first))
        ratios = [ours / mmcv for ours, mmcv in times]
        yield {
            'operator': operator.label if list(steps) == ['forward'] else f'{operator.label}, {name}',
            'mmitpn_ms': statistics.median(ours for ours, _ in times) * 1000,
            'mmcv_ms': statistics.median(mmcv for _, mmcv in times) * 1000,
            'ratio': statistics.median(ratios),
            'smallest': min(ratios),
            'largest': max(ratios),
        }


def speed_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the table of speed, the heading first."""
    table = [['operator', 'mmitpn, ms', 'mmcv, ms', 'mmitpn / mmcv', 'range']]
    for row in rows:
        span = f'{row["smallest"]:.2f} to {row["largest"]:.2f}'
        table.append([row['operator'], f'{row["mmitpn_ms"]:.2f}', f'{row["mmcv_ms"]:.2f}', f'{row["ratio"]:.2f}', span])
    return table


# --- command line -----------------------------------------------------------------------------------------------------
def markdown(table: list[list[str]]) -> str:
    """A table in Markdown."""
    heading, *rows = table
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heading, *rows)]
    lines.insert(1, ' | '.join('-' * width for width in widths))
    return '\n'.join(f'| {line} |' for line in lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--accuracy', action='store_true', help='compare outputs and gradients')
    parser.add_argument('--speed', action='store_true', help='compare times')
    parser.add_argument(
        '--only', nargs='+', metavar='WORD', help='only operators whose name in the tables has one of these in it'
    )
    parser.add_argument('--seeds', type=positive, default=3, help='random inputs of each accuracy case (default: 3)')
    parser.add_argument('--rounds', type=positive, default=15, help='timings of each (default: 15)')
    parser.add_argument('--threads', type=positive, default=2, help='of torch (default: 2)')
    parser.add_argument('--out', type=Path, metavar='FILE.md', help='also write the tables to this file')
    parser.add_argument('--json', action='store_true', help='print JSON instead of the tables')
    args = parser.parse_args(argv)
    if not (args.accuracy or args.speed):
        args.accuracy = args.speed = True
    labels = [item.label for item in (*ACCURACY_ROWS, *SPEED_ROWS)]
    for word in args.only or ():
        if not any(word in label for label in labels):
            names = ', '.join(sorted({label.partition(',')[0] for label in labels}))
            parser.error(f'--only got {word!r}, which no operator of the tables has in its name; they are: {names}')
    if args.out and not args.out.parent.is_dir():
        parser.error(f'--out is {args.out}, but there is no folder {args.out.parent}; make it or name another file')
    return args


def positive(text: str) -> int:
    """An integer above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}; allowed: an integer of 1 or more')
    return int(text)


def environment(mmcv_version: str) -> dict[str, Any]:
    """Versions, and what the times depend on."""
    return {
        'torch': torch.__version__,
        'torchvision': import_module('torchvision').__version__,
        'mmcv': mmcv_version,
        'threads': torch.get_num_threads(),
        'cpu_capability': torch.backends.cpu.get_cpu_capability(),
    }


def main(argv: list[str] | None = None) -> int:
    """Compare and print.

    Returns:
        0; 2 without a compiled mmcv.
    """
    args = parse_args(argv)
    found = status()
    if found.kind != 'compiled':
        seen = found.message.partition(';')[0]
        print(f'error: this script compares with a compiled mmcv, but {seen}; {COMPILED}', file=sys.stderr)
        return 2
    theirs = import_module('mmcv._ext')
    torch.set_num_threads(args.threads)
    facts = environment(import_module('mmcv').__version__)
    report = [', '.join(f'{name} {value}' for name, value in facts.items())]
    results: dict[str, Any] = {'environment': facts}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def chosen(items: tuple[Any, ...]) -> list[Any]:
        return [item for item in items if not args.only or any(word in item.label for word in args.only)]

    say(report[0])
    if args.accuracy:
        rows = results['accuracy'] = []
        for number, operator in enumerate(todo := chosen(ACCURACY_ROWS), 1):
            say(f'accuracy {number}/{len(todo)}: {operator.label}')
            rows.append(measure_accuracy(operator, theirs, args.seeds))
        report.append(markdown(accuracy_table(rows)))
        if not args.only:
            table = without_kernel_table()
            results['no_cpu_kernel'] = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
            report.append(markdown(table))
    if args.speed:
        rows = results['speed'] = []
        for number, operator in enumerate(todo := chosen(SPEED_ROWS), 1):
            for row in measure_speed(operator, theirs, args.rounds):
                say(f'speed {number}/{len(todo)}: {row["operator"]}: {row["ratio"]:.2f}')
                rows.append(row)
        report.append(markdown(speed_table(rows)))
    if any('deformable attention' in row['operator'] for key in ('accuracy', 'speed') for row in results.get(key, ())):
        reference = 'compiled kernel' if attention_is_compiled() else 'PyTorch function: it has no CPU kernel'
        report.append(f"Deformable attention is compared with mmcv's {reference}.")
    text = '\n\n'.join(report)
    if args.out:
        args.out.write_text(text + '\n', encoding='utf-8')
    print(json.dumps(results, indent=2) if args.json else text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
