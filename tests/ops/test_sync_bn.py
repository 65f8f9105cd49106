"""The steps of synchronized batch norm: on one process they are PyTorch's batch norm, over two that of both batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function

from mmitpn.ops import sync_bn


class SyncBN(Function):
    """As mmcv's ``SyncBatchNormFunction`` on one process."""

    @staticmethod
    def forward(ctx, images, weight, bias, running_mean, running_var, momentum):
        images, shape = images.flatten(2), images.shape
        dtype = weight.dtype
        mean, var, std = (torch.zeros(images.shape[1], dtype=dtype) for _ in range(3))
        norm, output = torch.zeros(images.shape, dtype=dtype), torch.zeros_like(images)
        if len(images):
            sync_bn.sync_bn_forward_mean(images, mean)
            sync_bn.sync_bn_forward_var(images, mean, var)
        sync_bn.sync_bn_forward_output(
            images, mean, var, weight, bias, running_mean, running_var, norm, std, output,
            eps=1e-3, momentum=momentum, group_size=1,
        )  # fmt: skip
        ctx.save_for_backward(norm, std, weight)
        return output.view(shape)

    @staticmethod
    def backward(ctx, grad):
        norm, std, weight = ctx.saved_tensors
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        flat = grad.flatten(2)
        of_images = torch.zeros_like(flat)
        sync_bn.sync_bn_backward_param(flat, norm, of_weight, of_bias)
        sync_bn.sync_bn_backward_data(flat, weight, of_weight, of_bias, norm, std, of_images)
        return of_images.view(grad.shape), of_weight, of_bias, None, None, None


@pytest.mark.parametrize('momentum', [0.1, torch.tensor([0.1])], ids=['number', 'tensor'])
def test_one_process_is_batch_norm(momentum):
    images, weight, bias = torch.randn(3, 4, 5, 6), torch.rand(4) + 0.5, torch.randn(4)
    results = []
    for function in (
        lambda *tensors, mean, var: SyncBN.apply(*tensors, mean, var, momentum),
        lambda images, weight, bias, mean, var: F.batch_norm(images, mean, var, weight, bias, True, 0.1, 1e-3),
    ):
        inputs = [each.clone().requires_grad_() for each in (images, weight, bias)]
        mean, var = torch.ones(4), torch.full((4,), 2.0)
        output = function(*inputs, mean=mean, var=var)
        slope = torch.linspace(-1, 1, output.numel()).view_as(output)
        results.append([output, mean, var, *torch.autograd.grad((output * slope).sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_finite_differences():
    inputs = [torch.randn(2, 2, 3, dtype=torch.float64), torch.rand(2).double() + 0.5, torch.randn(2).double()]
    inputs = [each.requires_grad_() for each in inputs]
    none = torch.zeros(0)
    assert torch.autograd.gradcheck(lambda *tensors: SyncBN.apply(*tensors, none, none, 0.1), inputs)


def test_two_processes_are_one_batch_of_both():
    """What mmcv does between the steps, with averages instead of messages."""
    images, grad, weight = torch.randn(4, 3, 5), torch.randn(4, 3, 5), torch.rand(3) + 0.5
    halves = images.split(2)
    means, variances = [torch.zeros(3) for _ in halves], [torch.zeros(3) for _ in halves]
    for half, mean in zip(halves, means, strict=True):
        sync_bn.sync_bn_forward_mean(half, mean)
    mean = sum(means) / 2
    for half, var in zip(halves, variances, strict=True):
        sync_bn.sync_bn_forward_var(half, mean, var)
    var = sum(variances) / 2
    running_mean, running_var, norms, std = torch.zeros(3), torch.zeros(3), [], torch.zeros(3)
    for half in halves:
        running_mean.zero_()
        running_var.zero_()
        norms.append(torch.zeros_like(half))
        sync_bn.sync_bn_forward_output(
            half, mean, var, weight, weight, running_mean, running_var, norms[-1], std, half.clone(), 1e-3, 1.0, 2
        )
    torch.testing.assert_close(running_var, images.transpose(0, 1).flatten(1).var(1))
    params = []
    for part, norm in zip(grad.split(2), norms, strict=True):
        params.append((torch.zeros(3), torch.zeros(3)))
        sync_bn.sync_bn_backward_param(part, norm, *params[-1])
    of_weight, of_bias = ((one + other) / 2 for one, other in zip(*params, strict=True))
    pieces = [torch.zeros_like(half) for half in halves]
    for part, norm, piece in zip(grad.split(2), norms, pieces, strict=True):
        sync_bn.sync_bn_backward_data(part, weight, of_weight, of_bias, norm, std, piece)
    whole = images.clone().requires_grad_()
    F.batch_norm(whole, None, None, weight, weight, True, 0.1, 1e-3).backward(grad)
    torch.testing.assert_close(torch.cat(pieces), whole.grad, rtol=1e-4, atol=1e-5)


def test_half_precision_no_images_and_absent_tensors():
    images, none = torch.randn(2, 3, 4).half(), torch.zeros(0)
    weight, bias = torch.ones(3), torch.zeros(3)
    output = SyncBN.apply(images, weight, bias, none, none, 0.1)
    assert output.dtype == torch.float16
    torch.testing.assert_close(
        output.float(), F.batch_norm(images.float(), None, None, training=True, eps=1e-3), rtol=0, atol=5e-3
    )
    mean, var = torch.full((3,), 5.0), torch.full((3,), 6.0)
    assert SyncBN.apply(images[:0], weight, bias, mean, var, torch.zeros(1)).shape == (0, 3, 4)
    assert (mean == 5).all()
    assert (var == 6).all()
    filled = torch.zeros_like(images)
    sync_bn.sync_bn_forward_output(
        images, images.float().mean((0, 2)), torch.ones(3), none, none, none, none, none, none, filled, 0.0, 0.1, 1
    )
    torch.testing.assert_close(filled.float(), images.float() - images.float().mean((0, 2))[:, None], atol=5e-3, rtol=0)
