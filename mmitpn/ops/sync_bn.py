"""The steps of synchronized batch norm between which mmcv exchanges sums, as in ``mmcv._ext``.

All statistics are fp32, whatever the type of the input ``(B, C, N)``.
"""

from __future__ import annotations

from torch import Tensor

from .sampling import operator


@operator
def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Fill ``mean`` ``(C,)`` with the mean of each channel of ``input`` ``(B, C, N)``.

    Defined by ``sync_bn_forward_mean_cuda_kernel``.
    """
    mean.copy_(input.to(mean.dtype).mean((0, 2)))


@operator
def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Fill ``var`` ``(C,)`` with the mean square distance of ``input`` ``(B, C, N)`` from ``mean`` ``(C,)``.

    Defined by ``sync_bn_forward_var_cuda_kernel``.
    """
    var.copy_((input.to(mean.dtype) - mean[:, None]).square().mean((0, 2)))


@operator
def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalize, and update the running statistics.

    Defined by ``sync_bn_forward_output_cuda_kernel``, for which an empty tensor is an absent one.

    Args:
        input: ``(B, C, N)``.
        mean: ``(C,)`` mean over all processes.
        var: ``(C,)`` variance over all processes.
        weight: ``(C,)``, or empty for a norm without weight and bias.
        bias: ``(C,)``.
        running_mean: ``(C,)``, changed in place, or empty.
        running_var: ``(C,)``, changed in place with the unbiased variance.
        norm: ``(B, C, N)``, filled with the normalized input, or empty.
        std: ``(C,)``, filled with the standard deviation, or empty.
        output: ``(B, C, N)``, filled.
        eps: Added to the variance.
        momentum: Weight of these statistics in the running ones; a one-element tensor is used without synchronization.
        group_size: Number of processes.
    """
    deviation = (var + eps).sqrt()
    normalized = (input.to(mean.dtype) - mean[:, None]) / deviation[:, None]
    if norm.numel():
        norm.copy_(normalized)
    if std.numel():
        std.copy_(deviation)
    output.copy_(normalized * weight[:, None] + bias[:, None] if weight.numel() else normalized)
    if running_mean.numel():
        count = input.shape[0] * input.shape[2] * group_size
        unbiased = var * count / (count - 1) if count > 1 else var
        running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
        running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


@operator
def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Fill the gradients of weight and bias ``(C,)`` from those of the output ``(B, C, N)``.

    Defined by ``sync_bn_backward_param_cuda_kernel``.
    """
    grad = grad_output.to(norm.dtype)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


@operator
def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Fill ``grad_input`` ``(B, C, N)``, with the gradients of weight and bias averaged over all processes.

    Defined by ``sync_bn_backward_data_cuda_kernel``.
    """
    count = grad_output.shape[0] * grad_output.shape[2]
    if not count:
        return
    along = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_(weight[:, None] * (grad_output.to(norm.dtype) - along) / std[:, None])
