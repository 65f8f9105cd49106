"""Checks in fp32: operators, losses, gradients, predictions on the device against the CPU, compiled against eager."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmitpn.benchmark.gpu.report import Row
from mmitpn.benchmark.gpu.whole_models import import_framework

OPERATORS = (
    'roi_align',
    'roi_align max',
    'roi_pool',
    'nms',
    'soft_nms',
    'deform_conv2d',
    'modulated_deform_conv2d',
    'carafe',
    'sigmoid_focal_loss',
    'box_iou_rotated',
    'point_sample',
    'deformable attention',
)
OPERATOR_LIMIT, MODEL_LIMIT = 1e-4, 1e-2


class SameRandomNumbers(TorchFunctionMode):
    """Draw on the CPU what a model draws on another device, so that both get the same numbers."""

    MADE = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm, torch.bernoulli})
    LIKE = frozenset({torch.rand_like, torch.randn_like, torch.randint_like})
    FILLED = frozenset({Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.random_})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Run ``func``, on the CPU where it draws random numbers."""
        kwargs = dict(kwargs or {})
        if func in self.MADE:
            device = kwargs.pop('device', None)
            args = tuple(each.cpu() if isinstance(each, Tensor) else each for each in args)
            out = func(*args, **kwargs)
            return out if device is None else out.to(device)
        if func in self.LIKE:
            kwargs.pop('device', None)
            return func(args[0].cpu(), *args[1:], **kwargs).to(args[0].device)
        if func in self.FILLED and args[0].device.type != 'cpu':
            return args[0].copy_(func(torch.empty_like(args[0], device='cpu'), *args[1:], **kwargs))
        return func(*args, **kwargs)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, divided by the largest value expected."""
    if not expected.numel():
        return 0.0
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


# --- operators --------------------------------------------------------------------------------------------------------


def _operators() -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """Name, function and inputs of the operators of detectors; gradients are compared of inputs that require them."""
    from mmcv import ops

    from mmitpn.ops.deformable_attention import sample_levels

    torch.manual_seed(0)
    maps = torch.randn(2, 8, 25, 30, requires_grad=True)
    start = torch.rand(40, 2) * 60
    boxes = torch.cat((start, start + 1 + torch.rand(40, 2) * 80), 1)
    rois = torch.cat((torch.randint(0, 2, (40, 1)).float(), boxes), 1)
    yield 'roi_align', lambda x, r: ops.roi_align(x, r, (7, 7), 0.25, 0, 'avg', True), [maps, rois]
    yield 'roi_align max', lambda x, r: ops.roi_align(x, r, (7, 7), 0.25, 2, 'max', True), [maps, rois]
    yield 'roi_pool', lambda x, r: ops.roi_pool(x, r, 7, 0.25), [maps, rois]
    scores = torch.rand(40)
    yield 'nms', lambda b, s: ops.nms(b, s, 0.5)[1], [boxes, scores]
    yield 'soft_nms', lambda b, s: ops.soft_nms(b, s, 0.3)[0], [boxes, scores]
    offsets = torch.randn(2, 18, 25, 30, requires_grad=True)
    weight = torch.randn(4, 8, 3, 3, requires_grad=True)
    yield 'deform_conv2d', lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1), [maps, offsets, weight]
    mask = torch.rand(2, 9, 25, 30, requires_grad=True)
    yield (
        'modulated_deform_conv2d',
        lambda x, o, m, w: ops.modulated_deform_conv2d(x, o, m, w, None, 1, 1),
        [maps, offsets, mask, weight],
    )
    masks = torch.randn(2, 25, 50, 60).softmax(1).requires_grad_()
    yield 'carafe', lambda x, m: ops.carafe(x, m, 5, 1, 2), [maps, masks]
    logits = torch.randn(40, 9, requires_grad=True)
    labels = torch.randint(0, 10, (40,))
    yield 'sigmoid_focal_loss', lambda x, t: ops.sigmoid_focal_loss(x, t, 2.0, 0.25, None, 'none'), [logits, labels]
    rotated = torch.cat((boxes, torch.rand(40, 1) * 3), 1)
    yield 'box_iou_rotated', lambda a: ops.box_iou_rotated(a, a), [rotated]
    points = torch.rand(2, 60, 2, requires_grad=True)
    yield 'point_sample', ops.point_sample, [maps, points]
    shapes = [(12, 10), (6, 5)]
    value = torch.randn(2, 150, 4, 8, requires_grad=True)
    places, weights = torch.rand(2, 30, 4, 2, 3, 2, requires_grad=True), torch.rand(2, 30, 4, 2, 3, requires_grad=True)
    yield 'deformable attention', lambda v, p, w: sample_levels(v, shapes, p, w), [value, places, weights]


def check_operator(name: str, device: torch.device) -> Row:
    """Output and gradients of an operator of detectors on the device against the CPU.

    Args:
        name: One of ``OPERATORS``.
        device: The device.

    Returns:
        The largest differences of ``output`` and ``gradients``, relative to the largest value.

    Raises:
        RuntimeError: If one is above ``OPERATOR_LIMIT``.
    """
    call, inputs = next((call, inputs) for found, call, inputs in _operators() if found == name)
    results = []
    for where in ('cpu', device):
        here = [each.detach().to(where).requires_grad_(each.requires_grad) for each in inputs]
        output = call(*here)
        wanted = [each for each in here if each.requires_grad]
        torch.manual_seed(0)
        gradient = torch.randn(output.shape).to(output.device)
        gradients = torch.autograd.grad(output, wanted, gradient) if wanted else ()
        results.append([output, *gradients])
    differences = [largest_difference(found, expected) for expected, found in zip(*results, strict=True)]
    row = {'output': differences[0], 'gradients': max(differences[1:], default=0.0)}
    if not max(differences) <= OPERATOR_LIMIT:  # also true for NaN
        raise RuntimeError(f'differs from the CPU: {row}')
    return row


# --- models -----------------------------------------------------------------------------------------------------------


def check_model(config: Path, device: torch.device, size: tuple[int, int]) -> Row:
    """Losses, gradients and predictions of a model on the device against the CPU.

    Weights, inputs and random numbers are the same. Dropout is off, whose fused kernel draws its own numbers.

    Args:
        config: Config file.
        device: The device.
        size: Height and width of two images in pixels.

    Returns:
        Differences of the ``loss`` (relative), the ``gradients`` (relative norm of all), and the scores or logits of
        the ``predictions`` (relative to the largest; left out where an untrained model finds nothing).

    Raises:
        RuntimeError: If one is above ``MODEL_LIMIT``.
    """
    model = _build(config)
    with SameRandomNumbers():
        expected = _results(copy.deepcopy(model), size, torch.device('cpu'))
        return _compare(_results(model, size, device), expected, 'the CPU')


def check_compiled(config: Path, device: torch.device, size: tuple[int, int], *, backend: str = 'inductor') -> Row:
    """Losses, gradients and predictions of a compiled model against those of the same one as it is, on the device.

    Args:
        config: Config file.
        device: The device.
        size: Height and width of two images in pixels.
        backend: Of ``torch.compile``.

    Returns:
        As :func:`check_model`.

    Raises:
        RuntimeError: If a difference is above ``MODEL_LIMIT``.
    """
    model = _build(config)
    from torch._inductor import config as inductor

    from mmitpn.engine.compile import compile_model

    with inductor.patch(fallback_random=True):  # the same random numbers as eager
        expected = _results(copy.deepcopy(model), size, device)
        compile_model(model, backend=backend)
        return _compare(_results(model, size, device), expected, 'the model that is not compiled')


def _build(config: Path) -> nn.Module:
    import_framework(config)
    from mmitpn.testing.demo_inputs import build_from_config

    torch.manual_seed(0)
    model = build_from_config(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif name.endswith('sampling_offsets'):
            # Untrained, they point at centers of cells, where the gradient jumps and rounding decides.
            module.bias.data += 0.01 * torch.randn_like(module.bias)
    return model


class _Results(NamedTuple):
    loss: Tensor
    gradients: Tensor
    scores: Tensor  # or logits; empty where the model predicts nothing


def _results(model: nn.Module, size: tuple[int, int], device: torch.device) -> _Results:
    """Loss, gradients of all parameters, and a prediction of a model moved to a device, on the CPU."""
    from mmitpn.testing.demo_inputs import loss_call, make_samples, model_kind

    model.to(device).train()
    torch.manual_seed(1)
    inputs = torch.randn(2, 3, *size, device='cpu').to(device)
    samples = make_samples(model, size, batch=2, objects=5, device=device)
    loss = loss_call(model, inputs, samples)()
    loss.backward()
    gradients = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    kind, scores = model_kind(model), []
    if kind != 'pretraining':
        model.eval()
        with torch.no_grad():
            predicted = model(inputs, samples, mode='predict')
        if kind == 'segmentor':
            scores = [each.seg_logits.data for each in predicted]
        elif kind == 'classifier':
            scores = [each.pred_score for each in predicted]
        else:
            scores = [each.pred_instances.scores for each in predicted if 'pred_instances' in each]
    return _Results(loss.detach().cpu(), gradients, torch.cat(scores).cpu() if scores else torch.zeros(0))


def _compare(found: _Results, expected: _Results, name: str) -> Row:
    row = {
        'loss': largest_difference(found.loss, expected.loss),
        'gradients': float((found.gradients - expected.gradients).norm() / expected.gradients.norm()),
    }
    if expected.scores.numel() or found.scores.numel():
        same = expected.scores.shape == found.scores.shape
        row['predictions'] = largest_difference(found.scores, expected.scores) if same else float('nan')
    if not all(value <= MODEL_LIMIT for value in row.values()):  # also true for NaN
        raise RuntimeError(f'differs from {name}: {row}')
    return row
