"""Whole models: predictions and training steps with their memory, eager and compiled, and the waits of the host."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

import torch

from mmitpn.benchmark.case import BenchmarkCase, build_case
from mmitpn.benchmark.gpu.report import Row, RowSkippedError
from mmitpn.benchmark.speed import latency, synchronize


def import_framework(config: Path) -> None:
    """Import the framework that builds the model of a config.

    Without it mmengine's registry reports a class that it cannot find, and not what is missing.

    Args:
        config: Config file.

    Raises:
        ModuleNotFoundError: If it, or a package that it needs, is not installed.
    """
    from mmengine.config import Config

    import_module(Config.fromfile(config).get('default_scope', 'mmdet'))


def _case(config: Path, size: tuple[int, int], device: torch.device, *, batch: int, train: bool) -> BenchmarkCase:
    import_framework(config)
    return BenchmarkCase(
        'detector',
        size,
        config=str(config),
        batch=batch,
        dtype='bf16',
        train=train,
        predict=not train,
        device=device.type,
    )


def model_speed(
    config: Path,
    size: tuple[int, int],
    device: torch.device,
    *,
    batch: int,
    train: bool,
    compiled: str | None = None,
    channels_last: bool = False,
) -> Row:
    """A prediction, or forward and backward of a training step, of a whole model in bf16 autocast.

    Args:
        config: Config file.
        size: Height and width in pixels.
        device: The device.
        batch: Number of images.
        train: A training step instead of a prediction.
        compiled: Mode of :func:`mmitpn.engine.compile.compile_model`; None: eager.
        channels_last: Weights of convolutions in channels-last order.
    """
    model, step = build_case(_case(config, size, device, batch=batch, train=train))
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if compiled is None:
        return latency(step, device, seconds=2.0, min_runs=10)
    from mmitpn.engine.compile import compile_model

    compile_model(model, mode=compiled)
    start = time.perf_counter()
    step()
    synchronize(device)
    return {'compile s': time.perf_counter() - start, **latency(step, device, seconds=2.0, min_runs=10)}


def count_waits(config: Path, size: tuple[int, int], device: torch.device, *, budgets: tuple[int, int | None]) -> Row:
    """How often the host waits for the GPU with two images (:func:`mmitpn.testing.host_waits.count_steps`).

    Args:
        config: Config file.
        size: Height and width in pixels.
        device: A CUDA device.
        budgets: Largest numbers of waits of a prediction and of the loss; None: any.

    Returns:
        Waits of a ``prediction``, of forward and ``loss``, and of backward and optimizer ``step``; the budgets of the
        first two (``at most``) and whether they are kept (``within``); the lines with the most.
    """
    if device.type != 'cuda':
        raise RowSkippedError('counted on GPUs; tools/analysis/count_waits.py counts on a simulated device')
    import_framework(config)
    from mmitpn.testing.demo_inputs import build_from_config, make_samples
    from mmitpn.testing.host_waits import BACKWARD, FORWARD, PREDICTION, count_steps, counted_device

    with counted_device('cuda') as counters:
        model = build_from_config(config).to(counters.device)
        inputs = torch.randn(2, 3, *size).to(counters.device)
        samples = make_samples(model, size, batch=2, objects=8, device=counters.device)
        counts = count_steps(model, inputs, samples, counters)
    found = [counts[phase].total for phase in (PREDICTION, FORWARD, BACKWARD)]
    kept = all(limit is None or number <= limit for number, limit in zip(found[:2], budgets, strict=True))
    lines = (counts[PREDICTION].where + counts[FORWARD].where).most_common(8)
    return {
        **dict(zip(('prediction', 'loss', 'step'), found, strict=True)),
        'at most': ' / '.join('any' if limit is None else str(limit) for limit in budgets),
        'within': 'yes' if kept else 'no',
        'lines': ', '.join(f'{line} ({count})' for line, count in lines),
    }
