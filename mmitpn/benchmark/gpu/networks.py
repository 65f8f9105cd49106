"""Speed of backbone and pyramid: time per image, MFU, and the kernels that take the time."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mmitpn.benchmark.case import BenchmarkCase, build_case
from mmitpn.benchmark.gpu.report import Row
from mmitpn.benchmark.macs import MacReport, count_macs
from mmitpn.benchmark.speed import latency, synchronize

# What a kernel does, by its name; the first that fits. Compiled kernels are named after what they fuse.
KINDS = (
    ('attention', r'flash|fmha|attention|sdpa'),
    ('layer norm', r'layer_?norm|var_mean'),
    ('matrix products', r'gemm|nvjet|cutlass|addmm|matmul|\bmm\b|bmm|linear'),
    ('convolutions', r'conv'),
    ('casts', r'bfloat16_copy|float_copy|WithCast|_to_copy'),
    ('copies', r'copy|[Mm]emcpy|CatArray|\bcat\b|gather|index|scatter|clone'),
    ('activations', r'gelu|silu|sigmoid'),
)
SHOWN = 12  # kernels


def build_network(
    case: BenchmarkCase, *, compiled: str | None, half_weights: bool
) -> tuple[Callable[[], Any], MacReport]:
    """One inference of a part of the network, as it is measured.

    Args:
        case: Without a config.
        compiled: Mode of ``torch.compile``; None: eager.
        half_weights: Weights in bf16 too, instead of autocast.

    Returns:
        What is measured, without arguments, and the multiply-adds of a run.
    """
    torch.manual_seed(0)
    model, step = build_case(case)
    macs = count_macs(model, call=step)
    inputs = torch.randn(case.batch, 3, *case.size, device=case.device)
    if half_weights:
        model, inputs = model.bfloat16(), inputs.bfloat16()
    network = torch.compile(model, mode=compiled, dynamic=False) if compiled else model
    as_they_are = half_weights or case.dtype == 'fp32'

    def call() -> Any:
        with torch.inference_mode(), nullcontext() if as_they_are else torch.autocast(case.device, torch.bfloat16):
            return network(inputs)

    return call, macs


def network_speed(
    case: BenchmarkCase,
    peak: float | None,
    *,
    compiled: str | None = None,
    half_weights: bool = False,
) -> Row:
    """Time per image and MFU of a part of the network.

    Args:
        case: Without a config.
        peak: Rate of the card's matrix products in TFLOP/s; None leaves MFU out.
        compiled: Mode of ``torch.compile``; None: eager.
        half_weights: Weights in bf16 too, instead of autocast.

    Returns:
        ``ms/image`` and those of :func:`latency` for the batch, ``compile s`` (the first run), ``MFU``, ``GMAC/image``,
        and the kernels of fused attention that were called.
    """
    device = torch.device(case.device)
    call, macs = build_network(case, compiled=compiled, half_weights=half_weights)
    start = time.perf_counter()
    call()
    synchronize(device)
    first = time.perf_counter() - start
    row = latency(call, device, seconds=1.0)
    row = {'ms/image': row['ms'] / case.batch, **row}
    if compiled:
        row['compile s'] = first
    if peak:
        row['MFU'] = 2e-9 * macs.total / row['ms'] / peak
    prefix = '_scaled_dot_product_'
    kernels = sorted(op.removeprefix(prefix).removesuffix('_attention') for op in macs.by_op if op.startswith(prefix))
    return {**row, 'GMAC/image': macs.total / case.batch / 1e9, 'attention': ', '.join(kernels) or 'none'}


def kernel_times(case: BenchmarkCase, *, compiled: str | None = None, half_weights: bool = False) -> Row:
    """The kernels of one inference: fractions of the time by kind, then of those that take the most.

    Kinds are guessed from names. Casts and the other copies are apart: autocast casts around operators that run in
    fp32, windows are copied.

    Args:
        case: Without a config.
        compiled: Mode of ``torch.compile``; None: eager.
        half_weights: Weights in bf16 too, instead of autocast.
    """
    device = torch.device(case.device)
    call, _ = build_network(case, compiled=compiled, half_weights=half_weights)
    for _ in range(3):
        call()
    synchronize(device)
    activity = ProfilerActivity.CUDA if device.type == 'cuda' else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        call()
        synchronize(device)
    events = profiler.key_averages()
    times = {
        each.key: each.self_device_time_total if device.type == 'cuda' else each.self_cpu_time_total for each in events
    }
    counts = {each.key: each.count for each in events}
    total = sum(times.values()) or 1.0
    kinds: Counter[str] = Counter()
    for name, spent in times.items():
        kinds[kind_of(name)] += spent
    row: Row = {'ms': total / 1e3}
    row |= {kind: f'{spent / total:.1%}' for kind, spent in kinds.most_common() if spent}
    largest = sorted(times, key=times.__getitem__, reverse=True)[:SHOWN]
    row['kernels'] = '; '.join(f'{name[:90]} {times[name] / total:.1%} ({counts[name]})' for name in largest)
    return row


def kind_of(name: str) -> str:
    """What a kernel does, one of ``KINDS`` or ``'other'``."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), 'other')
