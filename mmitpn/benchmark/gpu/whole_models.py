"""Whole models: predictions and training steps with their memory, eager and compiled, and the waits of the host."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


def count_waits(
    config: Path, size: tuple[int, int], device: torch.device, *, train: bool, at_most: int | None = None
) -> Row:
    """How often the host waits for the GPU with two images, by torch's own warnings.

    Counted from the normalized batch on: up to the results on the device, or up to the loss.

    Args:
        config: Config file.
        size: Height and width in pixels.
        device: A CUDA device.
        train: The loss instead of a prediction.
        at_most: The number that it should not exceed, which the row shows.

    Returns:
        ``waits``, with ``train`` those in the ``backward`` pass, and the lines with the most.
    """
    if device.type != 'cuda':
        raise RowSkippedError('torch counts waits on CUDA devices only')
    import_framework(config)
    from mmitpn.testing.demo_inputs import build_from_config, inference_call, loss_call, make_samples

    model = build_from_config(config).to(device).train(train)
    inputs = torch.randn(2, 3, *size, device=device)
    samples = make_samples(model, size, batch=2, objects=8, device=device)
    call = loss_call(model, inputs, samples) if train else inference_call(model, inputs, samples, predict=True)
    gradients = nullcontext() if train else torch.inference_mode()
    with gradients, torch.autocast(device.type, torch.bfloat16):
        call()  # constants are made once per size
        with _waits() as waits:
            result = call()
    lines = Counter(f'{Path(one.filename).name}:{one.lineno}' for one in waits)
    row: Row = {'waits': len(waits), 'at most': '' if at_most is None else at_most}
    if train:
        with _waits() as backward:
            result.backward()
        row['backward'] = len(backward)
    return {**row, 'lines': ', '.join(f'{line} ({count})' for line, count in lines.most_common(8))}


@contextmanager
def _waits() -> Iterator[list[warnings.WarningMessage]]:
    """The waits in this block: a list that is filled at its end."""
    found: list[warnings.WarningMessage] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode('default')
    found += [one for one in caught if 'synchroniz' in str(one.message)]
