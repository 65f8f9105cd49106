"""Whole models: predictions and training steps with their memory, eager and compiled, and the waits of the host."""

from __future__ import annotations

import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path

import torch

from mmitpn.benchmark.case import BenchmarkCase, build_case
from mmitpn.benchmark.gpu.report import Row, RowSkippedError
from mmitpn.benchmark.speed import latency


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
    compiled: bool = False,
    channels_last: bool = False,
) -> Row:
    """A prediction, or forward and backward of a training step, of a whole model in bf16 autocast.

    Args:
        config: Config file.
        size: Height and width in pixels.
        device: The device.
        batch: Number of images.
        train: A training step instead of a prediction.
        compiled: Compile the tensor part (``mmitpn.engine.compile.compile_model``).
        channels_last: Weights of convolutions in channels-last order.
    """
    model, step = build_case(_case(config, size, device, batch=batch, train=train))
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if compiled:
        try:
            from mmitpn.engine.compile import compile_model
        except ModuleNotFoundError as error:
            raise RowSkippedError('there is no mmitpn.engine.compile') from error
        compile_model(model)
    return latency(step, device, seconds=2.0, min_runs=10)


def count_waits(config: Path, size: tuple[int, int], device: torch.device, *, train: bool) -> Row:
    """How often the host waits for the GPU in a step with two images, by torch's own warnings.

    Args:
        config: Config file.
        size: Height and width in pixels.
        device: A CUDA device.
        train: The loss (forward and backward) instead of a prediction.
    """
    if device.type != 'cuda':
        raise RowSkippedError('torch counts waits on CUDA devices only')
    _, step = build_case(_case(config, size, device, batch=2, train=train))
    step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    waits = [one for one in caught if 'synchroniz' in str(one.message)]
    lines = Counter(f'{Path(one.filename).name}:{one.lineno}' for one in waits)
    return {'waits': len(waits), 'lines': ', '.join(f'{line} ({count})' for line, count in lines.most_common(8))}
