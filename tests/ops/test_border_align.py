"""BorderAlign against the kernels' definition in float64, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import Function

from mmitpn.ops.border_align import border_align_backward, border_align_forward


class BorderAlign(Function):
    """As mmcv's ``BorderAlignFunction``."""

    @staticmethod
    def forward(ctx, maps, boxes, pool_size):
        shape = (len(maps), maps.shape[1] // 4, boxes.shape[1], 4)
        output, winner = maps.new_zeros(shape), torch.zeros(shape, dtype=torch.int)
        border_align_forward(maps, boxes, output, winner, pool_size=pool_size)
        ctx.save_for_backward(boxes, winner)
        ctx.shape, ctx.pool_size = maps.shape, pool_size
        ctx.mark_non_differentiable(winner)
        return output, winner

    @staticmethod
    def backward(ctx, grad, _):
        boxes, winner = ctx.saved_tensors
        of_maps = grad.new_zeros(ctx.shape)
        border_align_backward(grad.contiguous(), boxes, winner, of_maps, pool_size=ctx.pool_size)
        return of_maps, None, None


def corners_of(y, x, height, width):
    """Row, column and weight of the four cells of a bilinear sample; none further than one cell outside."""
    if y < -1 or y > height or x < -1 or x > width:
        return []
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down = y - top if bottom > top else 0.0
    across = x - left if right > left else 0.0
    return [
        (top, left, (1 - down) * (1 - across)),
        (top, right, (1 - down) * across),
        (bottom, left, down * (1 - across)),
        (bottom, right, down * across),
    ]


def kernel(maps, boxes, pool_size, grad):
    maps, grad = maps.double(), grad.double()
    batch, channels, height, width = maps.shape
    channels //= 4
    output = torch.zeros(batch, channels, boxes.shape[1], 4, dtype=torch.float64)
    winner, of_maps = torch.zeros(output.shape, dtype=torch.int), torch.zeros_like(maps)
    for image in range(batch):
        for number, (x1, y1, x2, y2) in enumerate(boxes[image].double().tolist()):
            across, down = (x2 - x1) / pool_size, (y2 - y1) / pool_size
            borders = ((y1, x1, 0, across), (y1, x1, down, 0), (y2, x2, 0, -across), (y2, x2, -down, 0))
            for border, (y, x, y_step, x_step) in enumerate(borders):
                points = [corners_of(y + k * y_step, x + k * x_step, height, width) for k in range(pool_size + 1)]
                for channel in range(channels):
                    plane = maps[image, border * channels + channel]
                    values = [sum(plane[a, b].item() * weight for a, b, weight in point) for point in points]
                    best = max(range(pool_size + 1), key=lambda k: (values[k], -k))
                    output[image, channel, number, border], winner[image, channel, number, border] = values[best], best
                    for a, b, weight in points[best]:
                        slope = grad[image, channel, number, border]
                        of_maps[image, border * channels + channel, a, b] += weight * slope
    return output, winner, of_maps


def make_inputs(dtype=torch.float32, *, batch=2, channels=2, size=(5, 8), count=6):
    maps = torch.randn(batch, 4 * channels, *size, dtype=dtype)
    corner = (torch.rand(batch, count, 2, dtype=dtype) * 1.4 - 0.2) * torch.tensor([size[1], size[0]])
    far = corner + torch.rand(batch, count, 2, dtype=dtype) * 6
    return maps, torch.cat([corner, far], -1)


@pytest.mark.parametrize('pool_size', [1, 4, 10])
def test_equals_the_kernels(pool_size):
    maps, boxes = make_inputs()
    grad = torch.randn(2, 2, 6, 4)
    maps.requires_grad_()
    output, winner = BorderAlign.apply(maps, boxes, pool_size)
    of_maps = torch.autograd.grad(output, maps, grad)[0]
    expected, best, of_expected = kernel(maps.detach(), boxes, pool_size, grad)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(of_maps.double(), of_expected, rtol=0, atol=1e-5 * of_expected.abs().max().item())
    assert torch.equal(winner, best)


def test_the_first_of_equal_samples_wins():
    output, winner = BorderAlign.apply(torch.ones(1, 4, 3, 3), torch.tensor([[[0.0, 0.0, 2.0, 2.0]]]), 3)
    assert (output == 1).all()
    assert (winner == 0).all()


def test_finite_differences():
    maps, boxes = make_inputs(torch.float64, batch=1, channels=1, size=(4, 5), count=3)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: BorderAlign.apply(maps, boxes, 3)[0], (maps,), fast_mode=True)


def test_no_boxes_and_half_precision():
    maps, boxes = make_inputs(torch.float16, count=3)
    assert BorderAlign.apply(maps, boxes[:, :0], 2)[0].shape == (2, 2, 0, 4)
    output, _ = BorderAlign.apply(maps, boxes, 2)
    exact, _ = BorderAlign.apply(maps.double(), boxes.double(), 2)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=2e-2)
