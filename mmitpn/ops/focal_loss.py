"""Focal losses on class indices: the operators ``sigmoid_focal_loss_*`` and ``softmax_focal_loss_*`` of ``mmcv._ext``.

Source: ``sigmoid_focal_loss_cuda_kernel.cuh`` and ``softmax_focal_loss_cuda_kernel.cuh`` of mmcv, which has no
CPU kernel. The results are those of the kernel's float64 arithmetic, rounded to the dtype of the output: the kernel's
float32 loses the digits of ``1 - p`` for logits above 5, and all of them above 17.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .sampling import accumulation_dtype, operator

ELEMENTS = 1 << 20  # logits computed at once: a temporary of 4 MB in float32
TINY = torch.finfo(torch.float32).tiny  # FLT_MIN: the smallest probability whose logarithm is taken
CERTAIN = 53 * math.log(2)  # the logit from which 1 - p is 0 in float64


@operator
def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the sigmoid focal loss of each class.

    With ``p = sigmoid(input)``, the class of the target gets ``-alpha * (1 - p)^gamma * log(p)`` and each other class
    ``-(1 - alpha) * p^gamma * log(1 - p)``. Where a probability is 0 in float64, its logarithm is that of the smallest
    normal float32, as in the kernel.

    Args:
        input: ``(N, C)`` logits.
        target: ``(N,)`` class indices; one outside 0 to C - 1 is background.
        weight: ``(C,)`` weight of a row by the class of its target, or empty. Background has weight 1 (the kernel reads
            past the end of the tensor there).
        output: ``(N, C)`` output.
        gamma: Exponent of the modulating factor.
        alpha: Weight of the class of the target.

    Raises:
        ValueError: If a target on the CPU is above C.
    """
    _check_target(target, input.size(1))
    for x, label, out in _rows(input, target, output):
        positive, p, q = _of_target(label, x), torch.sigmoid(x), torch.sigmoid(-x)
        loss = torch.where(
            positive,
            -alpha * q.pow(gamma) * F.logsigmoid(x).clamp_(min=math.log(TINY)),
            (alpha - 1) * p.pow(gamma) * _log_of_rest(x),
        )
        out.copy_(_weighted(loss, weight, label))


@operator
def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of :func:`sigmoid_focal_loss_forward` by each logit.

    Args:
        input: ``(N, C)`` logits.
        target: ``(N,)`` class indices; one outside 0 to C - 1 is background.
        weight: ``(C,)`` weight of a row by the class of its target, or empty.
        grad_input: ``(N, C)`` output.
        gamma: Exponent of the modulating factor.
        alpha: Weight of the class of the target.

    Raises:
        ValueError: If a target on the CPU is above C.
    """
    _check_target(target, input.size(1))
    for x, label, out in _rows(input, target, grad_input):
        positive, p, q = _of_target(label, x), torch.sigmoid(x), torch.sigmoid(-x)
        log_p = F.logsigmoid(x).clamp_(min=math.log(TINY))
        grad = torch.where(
            positive,
            -alpha * q.pow(gamma) * (q - gamma * p * log_p),
            (alpha - 1) * p.pow(gamma) * (gamma * q * _log_of_rest(x) - p),
        )
        out.copy_(_weighted(grad, weight, label))


@operator
def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the softmax focal loss ``-alpha * (1 - p)^gamma * log(p)`` of each row.

    Args:
        input: ``(N, C)`` probabilities, after the softmax.
        target: ``(N,)`` class indices; a row whose index is outside 0 to C - 1 has no loss.
        weight: ``(C,)`` weight of a row by the class of its target, or empty.
        output: ``(N,)`` output.
        gamma: Exponent of the modulating factor.
        alpha: Factor of the loss.

    Raises:
        ValueError: If a target on the CPU is above C.
    """
    p, valid = _target_probability(input, target)
    loss = -alpha * (1 - p).pow(gamma) * p.clamp(min=TINY).log()
    output.copy_(_weighted(loss, weight, target).masked_fill_(~valid, 0))


@operator
def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of :func:`softmax_focal_loss_forward` by the logits before the softmax.

    Args:
        input: ``(N, C)`` probabilities, after the softmax.
        target: ``(N,)`` class indices; a row whose index is outside 0 to C - 1 has gradient 0.
        weight: ``(C,)`` weight of a row by the class of its target, or empty.
        buff: ``(N,)`` output: ``p`` times the derivative of the loss by ``p``.
        grad_input: ``(N, C)`` output.
        gamma: Exponent of the modulating factor.
        alpha: Factor of the loss.

    Raises:
        ValueError: If a target on the CPU is above C.
    """
    p, valid = _target_probability(input, target)
    rest = 1 - p
    # For p = 1 the kernel multiplies 0 by infinity if gamma is below 1; the limit is 0.
    slope = torch.where(rest > 0, gamma * rest.pow(gamma - 1) * p * p.clamp(min=TINY).log(), 0)
    factor = _weighted(alpha * (slope - rest.pow(gamma)), weight, target).masked_fill_(~valid, 0)
    buff.copy_(factor)
    for probability, label, scale, out in _rows(input, target, factor, grad_input):
        out.copy_(scale[:, None] * (_of_target(label, probability).to(probability.dtype) - probability))


def _check_target(target: Tensor, num_classes: int) -> None:
    # On a GPU the check would synchronize with it.
    if target.device.type == 'cpu' and target.numel() and (top := int(target.max())) > num_classes:
        raise ValueError(
            f'the focal loss got a target of {top}; allowed: 0 to {num_classes - 1}, background {num_classes}'
        )


def _rows(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of about ``ELEMENTS`` logits, at least in float32, with the rows of the other tensors."""
    size = max(ELEMENTS // max(logits.size(1), 1), 1)
    for part, *rest in zip(logits.split(size), *(other.split(size) for other in others), strict=True):
        yield (part.to(accumulation_dtype(part.dtype)), *rest)


def _of_target(label: Tensor, logits: Tensor) -> Tensor:
    """``(N, C)``: whether the class is that of the target."""
    return label[:, None] == torch.arange(logits.size(1), device=logits.device)


def _log_of_rest(x: Tensor) -> Tensor:
    """``log(1 - sigmoid(x))``, that of the smallest normal float32 where ``1 - p`` is 0 in float64."""
    return F.logsigmoid(-x).masked_fill_(x > CERTAIN, math.log(TINY))


def _weighted(values: Tensor, weight: Tensor, label: Tensor) -> Tensor:
    """Multiply rows by the weight of the class of their target; a target outside the classes has weight 1."""
    if weight.numel() == 0:
        return values
    valid = (label >= 0) & (label < weight.numel())
    factor = torch.where(valid, weight.to(values.dtype)[label.where(valid, 0)], 1)
    return values * (factor if values.dim() == 1 else factor[:, None])


def _target_probability(probability: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``(N,)`` probability of the class of the target, at least in float32, and whether there is such a class."""
    _check_target(target, probability.size(1))
    valid = (target >= 0) & (target < probability.size(1))
    dtype = accumulation_dtype(probability.dtype)
    if probability.numel() == 0:
        return probability.new_ones(len(target), dtype=dtype), valid
    chosen = probability.gather(1, target.where(valid, 0)[:, None])[:, 0]
    return chosen.to(dtype), valid
