"""What each setting for GPUs is worth (docs/gpu.md): the rows of the section ``settings``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmitpn.benchmark.case import BenchmarkCase
from mmitpn.benchmark.gpu.networks import build_network
from mmitpn.benchmark.gpu.report import Row
from mmitpn.benchmark.speed import latency


def optimizer_step(device: torch.device, arch: str, *, fused: bool) -> Row:
    """A step of AdamW for the parameters of a backbone.

    Args:
        device: The device.
        arch: Of the backbone.
        fused: The fused kernel instead of torch's choice.
    """
    from mmitpn import FastITPN

    parameters = list(FastITPN(arch).to(device).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=fused or None)
    return latency(optimizer.step, device, seconds=0.5)


def copy_of_images(device: torch.device, size: tuple[int, int], *, pinned: bool) -> Row:
    """Copy 8 uint8 images from the host to the device, as a data preprocessor does; with pinned memory without a wait.

    Args:
        device: The device.
        size: Height and width in pixels.
        pinned: From pinned memory.
    """
    images = torch.zeros(8, 3, *size, dtype=torch.uint8)
    if pinned and device.type == 'cuda':
        images = images.pin_memory()
    return latency(lambda: images.to(device, non_blocking=pinned), device, seconds=0.3)


def fp32_speed(case: BenchmarkCase, *, tf32: bool) -> Row:
    """An inference in fp32, with matrix products in fp32 or TF32.

    Args:
        case: Without a config, of ``dtype`` fp32.
        tf32: TF32 for matrix products and convolutions.
    """
    call, _ = build_network(case, compiled=None, half_weights=False)
    with _tf32(on=tf32):
        return latency(call, torch.device(case.device), seconds=0.5, min_runs=5)


@contextmanager
def _tf32(*, on: bool) -> Iterator[None]:
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('high' if on else 'highest')
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
