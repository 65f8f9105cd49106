"""Deformable convolution (arXiv 1703.06211) and its modulated form (arXiv 1811.11168), as in ``mmcv._ext``.

These call torchvision's operators, whose kernels have the same origin as mmcv's, with two differences. At a coordinate
of exactly -1, which occurs at a padded border while the offsets are zero, torchvision returns a gradient of the offset
and mmcv does not. And mmcv processes one image (modulated) or ``im2col_step`` images at a time to bound the memory.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .sampling import LARGEST_TEMPORARY, accumulation_dtype, operator, weighted_sums


@functools.cache
def _torchvision() -> Any:
    """Torchvision's compiled operators."""
    import torchvision  # noqa: F401 (registers them)

    return torch.ops.torchvision


class _Convolution(NamedTuple):
    """Settings of a convolution, in torchvision's order; pairs are (height, width)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int

    def arguments(self) -> tuple[int, ...]:
        """What torchvision's operators take after the tensors."""
        return (*self.stride, *self.padding, *self.dilation, self.groups, self.deform_groups)

    def coordinates(self, offset: Tensor, kernel: tuple[int, int]) -> Tensor:
        """Where each point of the kernel samples, ``(B, deform_groups, points, 2, H, W)`` (y, x) in cells."""
        offset = offset.unflatten(1, (self.deform_groups, kernel[0] * kernel[1], 2))
        axes = []
        for axis in range(2):
            start = torch.arange(offset.shape[4 + axis], device=offset.device) * self.stride[axis] - self.padding[axis]
            point = torch.arange(kernel[axis], device=offset.device) * self.dilation[axis]
            points = point.repeat_interleave(kernel[1]) if axis == 0 else point.repeat(kernel[0])
            shape = (-1, 1, 1) if axis == 0 else (-1, 1)
            cells = start[:, None] if axis == 0 else start
            axes.append(cells + points.view(*shape[:1], 1, 1) + offset[:, :, :, axis])
        return torch.stack(axes, 3)


def _supported(dtype: torch.dtype) -> torch.dtype:
    """The type in which torchvision runs: it has no bf16."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _forward(maps: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, settings: _Convolution) -> Tensor:
    maps, weight, offset, given = (
        tensor.to(_supported(maps.dtype)) for tensor in (maps, weight, offset, _given(mask, maps))
    )
    bias = weight.new_zeros(len(weight))
    return _torchvision().deform_conv2d(maps, weight, offset, given, bias, *settings.arguments(), mask is not None)


def _backward(
    grad: Tensor, maps: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, settings: _Convolution
) -> tuple[Tensor, ...]:
    """Gradients of maps, weight, offset and mask."""
    grad, maps, weight, offset, given = (
        tensor.to(_supported(maps.dtype)) for tensor in (grad, maps, weight, offset, _given(mask, maps))
    )
    bias = weight.new_zeros(len(weight))
    of_maps, of_weight, of_offset, of_mask, _ = _torchvision()._deform_conv2d_backward(
        grad, maps, weight, offset, given, bias, *settings.arguments(), mask is not None
    )
    y, x = settings.coordinates(offset, weight.shape[2:]).unbind(3)
    inside = (y > -1) & (x > -1) & (y < maps.shape[2]) & (x < maps.shape[3])
    of_offset = torch.where(inside[:, :, :, None], of_offset.view(*inside.shape[:3], 2, *inside.shape[3:]), 0)
    return of_maps, of_weight, of_offset.flatten(1, 3), of_mask


def _given(mask: Tensor | None, maps: Tensor) -> Tensor:
    """A mask for torchvision's operators, which take one even where it is not used."""
    return maps.new_zeros(len(maps), 1) if mask is None else mask


def _columns(input: Tensor, offset: Tensor, kernel: tuple[int, int], settings: _Convolution) -> Tensor:
    """What each point of the kernel reads, ``(B, H * W, points, C)`` with the output's H, W, in accumulation dtype."""
    (batch, channels, height, width), groups = input.shape, settings.deform_groups
    y, x = settings.coordinates(offset, kernel).unbind(3)
    inside = (y > -1) & (x > -1) & (y < height) & (x < width)
    y, x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    top, left = y.floor(), x.floor()
    dtype = accumulation_dtype(input.dtype)
    lower, further = (y - top).to(dtype), (x - left).to(dtype)
    weights = ((1 - lower) * (1 - further), (1 - lower) * further, lower * (1 - further), lower * further)
    index, weight = [], []
    for corner, factor in enumerate(weights):
        row, column = top.int() + corner // 2, left.int() + corner % 2
        valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index.append(row.clamp(0, height - 1) * width + column.clamp(0, width - 1))
        weight.append(factor * valid)
    # (B, deform_groups, points, H, W, 4) to (B, H, W, points, deform_groups, 4)
    position = torch.stack(index, -1).permute(0, 3, 4, 2, 1, 5)
    weight = torch.stack(weight, -1).permute(0, 3, 4, 2, 1, 5).reshape(-1, 4)
    image = torch.arange(batch, dtype=torch.int32, device=input.device).view(-1, 1, 1, 1, 1, 1) * (height * width)
    group = torch.arange(groups, dtype=torch.int32, device=input.device)[:, None]
    rows = input.permute(0, 2, 3, 1).to(dtype).reshape(-1, channels // groups)
    columns = weighted_sums(rows, ((position + image) * groups + group).reshape(-1, 4), weight)
    return columns.view(batch, -1, kernel[0] * kernel[1], channels)


def _settings(
    dH: int, dW: int, padH: int, padW: int, dilationH: int, dilationW: int, group: int, deformable_group: int
) -> _Convolution:
    return _Convolution((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)


@operator
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution without bias.

    Defined by ``deform_conv_forward`` (csrc/pytorch/deform_conv.cpp).

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(C_out, C / group, kH, kW)``.
        offset: ``(B, deformable_group * kH * kW * 2, H_out, W_out)``: y, then x of each point of the kernel, in cells.
        output: ``(B, C_out, H_out, W_out)``, filled.
        columns: Not used.
        ones: Not used.
        kW: Width of the kernel.
        kH: Height of the kernel.
        dW: Stride along x.
        dH: Stride along y.
        padW: Zeros left and right of the map.
        padH: Zeros above and below.
        dilationW: Columns from one point of the kernel to the next.
        dilationH: Rows from one to the next.
        group: Groups of channels of the convolution.
        deformable_group: Groups of channels with offsets of their own.
        im2col_step: Images at a time.
    """
    settings = _settings(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    for part in _image_parts(len(input), im2col_step):
        output[part] = _forward(input[part], weight, offset[part], None, settings).to(output.dtype)


def _image_parts(images: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, images, max(step, 1))]


@operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add the gradient of the input of :func:`deform_conv_forward` to ``gradInput``, and fill ``gradOffset``.

    Defined by ``deform_conv_backward_input`` (csrc/pytorch/deform_conv.cpp).
    """
    settings = _settings(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    for part in _image_parts(len(input), im2col_step):
        of_input, _, of_offset, _ = _backward(gradOutput[part], input[part], weight, offset[part], None, settings)
        gradInput[part] += of_input.to(gradInput.dtype)
        gradOffset[part] = of_offset.to(gradOffset.dtype)


@operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add ``scale`` times the gradient of the weight of :func:`deform_conv_forward` to ``gradWeight``.

    Defined by ``deform_conv_backward_parameters`` (csrc/pytorch/deform_conv.cpp). torchvision computes this gradient
    together with the others only.
    """
    settings = _settings(dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    of_image = gradOutput[:1].shape[2:].numel() * kH * kW * input.shape[1]
    total = None
    for part in _image_parts(len(input), max(1, min(im2col_step, LARGEST_TEMPORARY // max(of_image, 1)))):
        read = _columns(input[part], offset[part], (kH, kW), settings).unflatten(-1, (group, -1))
        grad = gradOutput[part].to(read.dtype).unflatten(1, (group, -1)).flatten(3)
        products = torch.einsum('bgop,bpkgc->gock', grad, read).flatten(0, 1).view(gradWeight.shape)
        total = products if total is None else total.add_(products)
    if total is not None:
        gradWeight.add_(total.to(gradWeight.dtype), alpha=scale)


def _of_size(given: Tensor, size: torch.Size) -> Tensor:
    """Offsets or weights of samples ``(B, C, *size)`` in the memory of larger maps.

    mmcv's kernels look at the first values of each image only and take them for maps of the output's size. DyHead
    (mmdet) hands over the offsets of a level twice as large as the one that it convolves.

    Raises:
        ValueError: If there are fewer values than that.
    """
    if given.shape[2:] == size:
        return given
    batch, channels = given.shape[:2]
    number = channels * size.numel()
    if given[0].numel() < number:
        raise ValueError(
            f'offsets or masks of a deformable convolution are {tuple(given.shape[2:])}, and its output is '
            f'{tuple(size)}; make both the same'
        )
    return given.flatten(1)[:, :number].reshape(batch, channels, *size)


@operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Deformable convolution with a weight for each sample.

    Defined by ``modulated_deform_conv_forward`` (csrc/pytorch/modulated_deform_conv.cpp).

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(C_out, C / group, kernel_h, kernel_w)``.
        bias: ``(C_out,)``, used if ``with_bias``.
        ones: Not used.
        offset: ``(B, deformable_group * kernel_h * kernel_w * 2, H_out, W_out)``: y, then x of each point, in cells.
        mask: ``(B, deformable_group * kernel_h * kernel_w, H_out, W_out)``, weights of the samples.
        output: ``(B, C_out, H_out, W_out)``, filled.
        columns: Not used.
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        stride_h: Stride along y.
        stride_w: Stride along x.
        pad_h: Zeros above and below the map.
        pad_w: Zeros left and right.
        dilation_h: Rows from one point of the kernel to the next.
        dilation_w: Columns from one to the next.
        group: Groups of channels of the convolution.
        deformable_group: Groups of channels with offsets of their own.
        with_bias: Whether to add ``bias``.
    """
    settings = _settings(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    offset, mask = _of_size(offset, output.shape[2:]), _of_size(mask, output.shape[2:])
    for part in _image_parts(len(input), 1):
        output[part] = _forward(input[part], weight, offset[part], mask[part], settings).to(output.dtype)
    if with_bias:
        output += bias.to(output.dtype).view(1, -1, 1, 1)


@operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`.

    They are added to ``grad_input``, ``grad_weight`` and ``grad_bias``; ``grad_offset`` and ``grad_mask`` are filled.
    Defined by ``modulated_deform_conv_backward`` (csrc/pytorch/modulated_deform_conv.cpp).
    """
    settings = _settings(stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    size = grad_output.shape[2:]
    offset, mask = _of_size(offset, size), _of_size(mask, size)
    for part in _image_parts(len(input), 1):
        of_input, of_weight, of_offset, of_mask = _backward(
            grad_output[part], input[part], weight, offset[part], mask[part], settings
        )
        grad_input[part] += of_input.to(grad_input.dtype)
        grad_weight += of_weight.to(grad_weight.dtype)
        for given, found in ((grad_offset[part], of_offset), (grad_mask[part], of_mask)):
            given.view(-1)[: found.numel()] = found.to(given.dtype).view(-1)
    if with_bias:
        sums = grad_output.to(accumulation_dtype(grad_output.dtype)).sum((0, 2, 3))
        grad_bias += sums.to(grad_bias.dtype)
