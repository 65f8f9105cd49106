"""CARAFE upsampling (arXiv 1905.02188), as in ``mmcv._ext``: each output cell is a weighted sum around an input cell.

The naive and the other operators compute the same result. The latter also fill the channels-last buffers that their
kernels transpose into; their backward pass reads ``rfeatures``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from .sampling import accumulation_dtype, operator


@operator
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """CARAFE.

    Defined by ``carafe_naive_forward_cuda_kernel``.

    Args:
        features: ``(B, C, H, W)``.
        masks: ``(B, group_size * kernel_size ** 2, H * scale_factor, W * scale_factor)``.
        output: ``(B, C, H * scale_factor, W * scale_factor)``, filled.
        kernel_size: Rows and columns of cells to sum, odd.
        group_size: Number of channel groups, each with its own weights.
        scale_factor: Output cells per input cell and axis.
    """
    _reassemble(features, masks, output, kernel_size, group_size, scale_factor)


@operator
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Add the gradients of :func:`carafe_naive_forward` to ``bottom_grad`` and ``mask_grad``.

    Defined by ``carafe_naive_backward_cuda_kernel``.
    """
    of_features, of_masks = _gradients(top_grad, features, masks, kernel_size, group_size, scale_factor)
    bottom_grad += of_features
    mask_grad += of_masks


@operator
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """CARAFE with copies of its tensors with channels last.

    Defined by ``CARAFEForwardCUDAKernelLauncher``.

    Args:
        features: ``(B, C, H, W)``.
        masks: ``(B, group_size * kernel_size ** 2, H * scale_factor, W * scale_factor)``.
        rfeatures: Resized to ``(B, H, W, C)`` and filled with ``features``.
        routput: Resized and filled with ``output``.
        rmasks: Resized and filled with ``masks``.
        output: ``(B, C, H * scale_factor, W * scale_factor)``, filled.
        kernel_size: Rows and columns of cells to sum, odd.
        group_size: Number of channel groups, each with its own weights.
        scale_factor: Output cells per input cell and axis.
    """
    _reassemble(features, masks, output, kernel_size, group_size, scale_factor)
    for buffer, source in ((rfeatures, features), (routput, output), (rmasks, masks)):
        _fill_channels_last(buffer, source)


@operator
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Fill ``bottom_grad`` ``(B, C, H, W)`` and ``mask_grad`` with the gradients of :func:`carafe_forward`.

    Defined by ``CARAFEBackwardCUDAKernelLauncher``. ``rfeatures`` ``(B, H, W, C)`` is what the forward filled; the
    other buffers, which mmcv does not read, are left as they are.
    """
    features = rfeatures.permute(0, 3, 1, 2)
    of_features, of_masks = _gradients(top_grad, features, masks, kernel_size, group_size, scale_factor)
    bottom_grad.copy_(of_features)
    mask_grad.copy_(of_masks)


def _fill_channels_last(buffer: Tensor, source: Tensor) -> None:
    last = source.permute(0, 2, 3, 1)
    buffer.resize_(last.shape).copy_(last)


def _windows(
    features: Tensor, kernel_size: int, group_size: int, dtype: torch.dtype
) -> Iterator[tuple[int, tuple[slice, slice], Tensor]]:
    """Each offset of the kernel: its number, where it lies in the padded map, and its cells.

    The cells are ``(B, groups, C / groups, 1, 1, H, W)``, zeros outside the map.
    """
    height, width = features.shape[2:]
    margin = (kernel_size - 1) // 2
    padded = pad(features.to(dtype), [margin] * 4)
    for number in range(kernel_size**2):
        row, column = divmod(number, kernel_size)
        where = slice(row, row + height), slice(column, column + width)
        window = padded[:, :, where[0], where[1]].unflatten(1, (group_size, -1))
        yield number, where, window[:, :, :, None, None]


def _split(maps: Tensor, groups: int, scale_factor: int, dtype: torch.dtype) -> Tensor:
    """Maps ``(B, K, H * s, W * s)`` as ``(B, groups, K / groups, s, s, H, W)``, the cells of one input cell apart."""
    height, width = maps.shape[2] // scale_factor, maps.shape[3] // scale_factor
    split = maps.to(dtype).reshape(len(maps), groups, -1, height, scale_factor, width, scale_factor)
    return split.permute(0, 1, 2, 4, 6, 3, 5).contiguous()


def _join(split: Tensor) -> Tensor:
    """Inverse of :func:`_split`."""
    batch, groups, channels, scale_factor, _, height, width = split.shape
    maps = split.permute(0, 1, 2, 5, 3, 6, 4)
    return maps.reshape(batch, groups * channels, height * scale_factor, width * scale_factor)


def _reassemble(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    if not output.numel():
        return
    dtype = accumulation_dtype(output.dtype)
    weights = _split(masks, group_size, scale_factor, dtype)
    total = weights.new_zeros(len(weights), group_size, features.shape[1] // group_size, *weights.shape[3:])
    for number, _, window in _windows(features, kernel_size, group_size, dtype):
        total.addcmul_(window, weights[:, :, number, None])
    output.copy_(_join(total))


def _gradients(
    grad: Tensor, features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> tuple[Tensor, Tensor]:
    """Gradients of features and masks, in the accumulation dtype."""
    dtype = accumulation_dtype(grad.dtype)
    margin = (kernel_size - 1) // 2
    height, width = features.shape[2:]
    padded = (*features.shape[:2], height + 2 * margin, width + 2 * margin)
    of_padded = torch.zeros(padded, dtype=dtype, device=features.device)
    if not grad.numel():
        return torch.zeros_like(features, dtype=dtype), torch.zeros_like(masks, dtype=dtype)
    grad, weights = (_split(maps, group_size, scale_factor, dtype) for maps in (grad, masks))
    of_masks = torch.empty_like(weights)
    for number, (rows, columns), window in _windows(features, kernel_size, group_size, dtype):
        of_masks[:, :, number] = (window * grad).sum(2)
        of_padded[:, :, rows, columns] += (weights[:, :, number, None] * grad).sum((3, 4)).flatten(1, 2)
    return of_padded[:, :, margin : margin + height, margin : margin + width], _join(of_masks)
