"""The two steps of masked convolution, as in ``mmcv._ext``: gather columns of selected cells, scatter the results."""

from __future__ import annotations

import torch
from torch import Tensor

from .sampling import operator


@operator
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Collect what a convolution of stride 1 reads for some cells of its output.

    Defined by ``MaskedIm2colForward`` (csrc/common/cuda/masked_conv2d_cuda_kernel.cuh), which reads the first image.

    Args:
        im: ``(1, C, H, W)``.
        mask_h_idx: ``(N,)`` rows of the cells.
        mask_w_idx: ``(N,)`` columns.
        col: ``(C * kernel_h * kernel_w, N)``, filled; zeros outside the map.
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        pad_h: Zeros above and below the map.
        pad_w: Zeros left and right.
    """
    if not col.numel():
        return
    channels, height, width = im.shape[1:]
    columns = col.view(channels, kernel_h, kernel_w, -1)
    flat = im[0].reshape(channels, -1)
    for row in range(kernel_h):
        y = mask_h_idx - pad_h + row
        for column in range(kernel_w):
            x = mask_w_idx - pad_w + column
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            read = flat[:, y.clamp(0, height - 1) * width + x.clamp(0, width - 1)]
            columns[:, row, column] = torch.where(inside, read, 0)


@operator
def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write one column per cell into a map; its other cells stay as they are.

    Defined by ``MaskedCol2imForward`` (csrc/common/cuda/masked_conv2d_cuda_kernel.cuh).

    Args:
        col: ``(channels, N)``.
        mask_h_idx: ``(N,)`` rows of the cells.
        mask_w_idx: ``(N,)`` columns.
        im: ``(1, channels, height, width)``, its cells filled.
        height: Of the map.
        width: Of the map.
        channels: Of the map.
    """
    im[0].view(channels, -1).index_copy_(1, mask_h_idx * width + mask_w_idx, col.view(channels, -1))
