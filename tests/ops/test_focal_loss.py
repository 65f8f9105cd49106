"""The focal losses against float64 loops written from the definition of mmcv's CUDA kernels, and finite differences."""

import math

import pytest
import torch

from mmitpn.ops import focal_loss

TINY = torch.finfo(torch.float32).tiny


def _sigmoid_loop(logits, target, weight, gamma, alpha):
    """Loss and derivative of each logit."""
    loss, grad = torch.zeros_like(logits), torch.zeros_like(logits)
    for n, c in ((n, c) for n in range(logits.size(0)) for c in range(logits.size(1))):
        label = int(target[n])
        p = 1 / (1 + math.exp(-logits[n, c]))
        if label == c:
            loss[n, c] = -alpha * (1 - p) ** gamma * math.log(max(p, TINY))
            grad[n, c] = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * math.log(max(p, TINY)))
        else:
            loss[n, c] = -(1 - alpha) * p**gamma * math.log(max(1 - p, TINY))
            grad[n, c] = -(1 - alpha) * p**gamma * (gamma * (1 - p) * math.log(max(1 - p, TINY)) - p)
        if weight.numel() and 0 <= label < logits.size(1):
            loss[n, c] *= weight[label]
            grad[n, c] *= weight[label]
    return loss, grad


def _softmax_loop(probability, target, weight, gamma, alpha):
    """Loss of each row, ``p`` times its derivative by the probability ``p`` of the target, derivative by the logits."""
    number, classes = probability.shape
    loss, buff, grad = probability.new_zeros(number), probability.new_zeros(number), torch.zeros_like(probability)
    for n in range(number):
        label = int(target[n])
        if not 0 <= label < classes:
            continue
        p = float(probability[n, label])
        factor = float(weight[label]) if weight.numel() else 1.0
        loss[n] = -alpha * (1 - p) ** gamma * math.log(max(p, TINY)) * factor
        buff[n] = alpha * (-((1 - p) ** gamma) + gamma * (1 - p) ** (gamma - 1) * p * math.log(max(p, TINY))) * factor
        for c in range(classes):
            grad[n, c] = buff[n] * ((label == c) - float(probability[n, c]))
    return loss, buff, grad


def _inputs(seed, number=23, classes=6):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(number, classes, generator=random, dtype=torch.float64) * 4
    target = torch.randint(-1, classes + 1, (number,), generator=random)  # -1 and C are background
    weight = torch.rand(classes, generator=random, dtype=torch.float64) + 0.5
    return logits, target, weight if seed % 2 else weight[:0]


def _close(actual, expected, dtype):
    precision = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=precision * float(expected.abs().max()))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('seed', 'gamma', 'alpha'), [(0, 2.0, 0.25), (1, 2.0, 0.25), (2, 0.0, 0.5), (3, 1.5, 0.75)])
def test_sigmoid_focal_loss_is_the_kernel(seed, gamma, alpha, dtype, monkeypatch):
    monkeypatch.setattr(focal_loss, 'ELEMENTS', 30)  # several parts
    logits, target, weight = _inputs(seed)
    logits, weight = logits.to(dtype), weight.to(dtype)
    loss, grad = _sigmoid_loop(logits.double(), target, weight.double(), gamma, alpha)
    output, grad_input = torch.full_like(logits, 9), torch.full_like(logits, 9)
    focal_loss.sigmoid_focal_loss_forward(logits, target, weight, output, gamma=gamma, alpha=alpha)
    focal_loss.sigmoid_focal_loss_backward(logits, target, weight, grad_input, gamma=gamma, alpha=alpha)
    _close(output, loss, dtype)
    _close(grad_input, grad, dtype)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('seed', 'gamma', 'alpha'), [(0, 2.0, 0.25), (1, 2.0, 0.25), (2, 0.0, 0.5), (3, 1.5, 0.75)])
def test_softmax_focal_loss_is_the_kernel(seed, gamma, alpha, dtype, monkeypatch):
    monkeypatch.setattr(focal_loss, 'ELEMENTS', 30)
    logits, target, weight = _inputs(seed)
    probability, weight = (logits / 4).softmax(1).to(dtype), weight.to(dtype)
    loss, buff, grad = _softmax_loop(probability.double(), target, weight.double(), gamma, alpha)
    output, buffer, grad_input = (torch.full_like(like, 9, dtype=dtype) for like in (loss, buff, grad))
    focal_loss.softmax_focal_loss_forward(probability, target, weight, output, gamma=gamma, alpha=alpha)
    focal_loss.softmax_focal_loss_backward(probability, target, weight, buffer, grad_input, gamma=gamma, alpha=alpha)
    for actual, expected in ((output, loss), (buffer, buff), (grad_input, grad)):
        _close(actual, expected, dtype)


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, weight):
        ctx.save_for_backward(logits, target, weight)
        output = torch.empty_like(logits)
        focal_loss.sigmoid_focal_loss_forward(logits, target, weight, output, 2.0, 0.25)
        return output

    @staticmethod
    def backward(ctx, grad):
        grad_input = torch.empty_like(grad)
        focal_loss.sigmoid_focal_loss_backward(*ctx.saved_tensors, grad_input, 2.0, 0.25)
        return grad * grad_input, None, None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, weight):
        probability = logits.softmax(1)
        ctx.save_for_backward(probability, target, weight)
        output = logits.new_empty(len(logits))
        focal_loss.softmax_focal_loss_forward(probability, target, weight, output, 2.0, 0.25)
        return output

    @staticmethod
    def backward(ctx, grad):
        probability, target, weight = ctx.saved_tensors
        grad_input = torch.empty_like(probability)
        focal_loss.softmax_focal_loss_backward(
            probability, target, weight, torch.empty_like(grad), grad_input, 2.0, 0.25
        )
        return grad[:, None] * grad_input, None, None


@pytest.mark.parametrize('function', [_Sigmoid, _Softmax])
@pytest.mark.parametrize('seed', [0, 1])
def test_derivatives_are_the_finite_differences(function, seed):
    logits, target, weight = _inputs(seed, number=6, classes=4)
    assert torch.autograd.gradcheck(function.apply, ((logits / 2).requires_grad_(), target, weight))


def test_certain_logits_have_the_loss_of_the_kernel_in_float64():
    logits, target = torch.tensor([[200.0, -200.0, 30.0, 50.0]]), torch.tensor([1])
    output, grad = torch.empty(1, 4), torch.empty(1, 4)
    focal_loss.sigmoid_focal_loss_forward(logits, target, torch.empty(0), output, 2.0, 0.25)
    focal_loss.sigmoid_focal_loss_backward(logits, target, torch.empty(0), grad, 2.0, 0.25)
    least = -math.log(TINY)
    torch.testing.assert_close(output, torch.tensor([[0.75 * least, 0.25 * least, 0.75 * 30, 0.75 * least]]))
    torch.testing.assert_close(grad, torch.tensor([[0.75, -0.25, 0.75, 0.75]]))


def test_a_certain_softmax_has_a_finite_derivative():
    for gamma in (0.0, 0.5, 2.0):
        grad, buff = torch.empty(1, 2), torch.empty(1)
        focal_loss.softmax_focal_loss_backward(
            torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.empty(0), buff, grad, gamma, 0.25
        )
        assert grad.tolist() == [[0.0, -0.0]]


def test_no_rows():
    for function, outputs in (
        (focal_loss.sigmoid_focal_loss_forward, [torch.empty(0, 3)]),
        (focal_loss.sigmoid_focal_loss_backward, [torch.empty(0, 3)]),
        (focal_loss.softmax_focal_loss_forward, [torch.empty(0)]),
        (focal_loss.softmax_focal_loss_backward, [torch.empty(0), torch.empty(0, 3)]),
    ):
        function(torch.empty(0, 3), torch.empty(0, dtype=torch.long), torch.empty(0), *outputs, 2.0, 0.25)


@pytest.mark.parametrize('function', [focal_loss.sigmoid_focal_loss_forward, focal_loss.softmax_focal_loss_forward])
def test_a_target_beyond_the_background(function):
    with pytest.raises(ValueError, match='target of 4; allowed: 0 to 2, background 3'):
        function(torch.rand(1, 3), torch.tensor([4]), torch.empty(0), torch.empty(1, 3), 2.0, 0.25)
