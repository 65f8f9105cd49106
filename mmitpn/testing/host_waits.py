"""How often the host waits for the device in the steps of a model: on the simulated device, or on a GPU."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .demo_inputs import inference_call, model_kind

PACKAGES = ('mmitpn', 'mmdet', 'mmseg', 'mmpretrain', 'mmcv', 'mmengine')
OTHER_CODE = 'backward pass or other code'
SYNC_WARNING = 'called a synchronizing CUDA operation'
FORWARD, BACKWARD, PREDICTION = 'forward + loss', 'backward + step', 'prediction'


class DeviceCounters:
    """A device and what was counted on it.

    Attributes:
        device: ``torch.device('sim', 0)``, or another device whose waits are counted.
        waits: How often the host waited for the device, by what it needed (``'item'``, ``'nonzero'``, ``'copy to
            host'``, ...).
        copies: How often data was copied from the host to the device, by the function that did it. The host waits for
            each of them too, unless it copies from pinned memory with ``non_blocking=True``.
        operators: How often each operator ran on the device, views included.
        where: The same events as in ``waits`` and ``copies``, by ``'event @ file:line < file:line of the caller'`` in
            this project and the frameworks of OpenMMLab.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.where: Counter[str] = Counter()

    @property
    def num_waits(self) -> int:
        """Number of waits for results, without the copies to the device."""
        return self.waits.total()

    @property
    def num_copies(self) -> int:
        """Number of copies from the host to the device."""
        return self.copies.total()

    @property
    def num_operators(self) -> int:
        """Number of operators that ran on the device."""
        return self.operators.total()

    def reset(self) -> None:
        """Set all counters to zero."""
        for counter in (self.waits, self.copies, self.operators, self.where):
            counter.clear()

    def record_wait(self, name: str, where: str) -> None:
        """Count a wait."""
        self.waits[name] += 1
        self.where[f'{name} @ {where}'] += 1

    def record_copy(self, name: str, where: str) -> None:
        """Count a copy to the device."""
        self.copies[name] += 1
        self.where[f'{name} @ {where}'] += 1


def asking_code(depth: int = 2) -> str:
    """The innermost lines of :data:`PACKAGES` on the stack, the innermost first.

    Args:
        depth: Number of lines.
    """
    lines: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(lines) < depth:
        module = frame.f_globals.get('__name__', '')
        if module.split('.')[0] in PACKAGES and not module.startswith('mmitpn.testing'):
            lines.append(f'{module.replace(".", "/")}.py:{frame.f_lineno}')
        frame = frame.f_back
    return ' < '.join(lines) or OTHER_CODE


@contextmanager
def counted_device(name: str) -> Iterator[DeviceCounters]:
    """A device and the counters of its waits.

    Args:
        name: ``'sim'``: :func:`~mmitpn.testing.simulated_device`; ``'cuda'``: the GPU, whose waits
            are those that torch warns of (``torch.cuda.set_sync_debug_mode``), copies among them; its operators are
            not counted; ``'cpu'``: nothing is counted.

    Raises:
        ValueError: If the name is another one.
    """
    if name == 'sim':
        from .simulation import simulated_device  # which imports this module

        with simulated_device() as sim:
            yield sim
    elif name == 'cuda':
        with _cuda_waits() as counters:
            yield counters
    elif name == 'cpu':
        yield DeviceCounters(torch.device('cpu'))
    else:
        raise ValueError(f"device is {name!r}; allowed: 'sim', 'cuda', 'cpu'")


@contextmanager
def _cuda_waits() -> Iterator[DeviceCounters]:
    counters = DeviceCounters(torch.device('cuda', torch.cuda.current_device()))
    mode = torch.cuda.get_sync_debug_mode()
    show = warnings.showwarning

    def record(message: Any, category: type[Warning], filename: str, lineno: int, *args: Any, **kwargs: Any) -> None:
        if SYNC_WARNING in str(message):
            counters.record_wait('synchronization', asking_code())
        else:
            show(message, category, filename, lineno, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.filterwarnings('always', message=f'.*{SYNC_WARNING}')
        warnings.showwarning = record
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield counters
        finally:
            torch.cuda.set_sync_debug_mode(mode)


@dataclass(frozen=True)
class Counts:
    """Counts of one phase of a step; see :class:`DeviceCounters`."""

    waits: Counter[str]
    copies: Counter[str]
    where: Counter[str]
    num_operators: int

    @property
    def total(self) -> int:
        """Waits for results and copies to the device together."""
        return self.waits.total() + self.copies.total()


def count(counters: DeviceCounters, call: Callable[[], Any]) -> tuple[Counts, Any]:
    """Counts of a call, and what it returned.

    Args:
        counters: Of :func:`counted_device`; they are reset.
        call: The function.
    """
    counters.reset()
    result = call()
    counts = Counts(
        Counter(counters.waits), Counter(counters.copies), Counter(counters.where), counters.operators.total()
    )
    counters.reset()
    return counts, result


def count_steps(
    model: nn.Module, inputs: Tensor, samples: list, counters: DeviceCounters, *, warm_up: bool = True
) -> dict[str, Counts]:
    """Counts of a training step and of a prediction, from the normalized batch on the device to results there.

    Args:
        model: A model of :func:`~mmitpn.testing.demo_inputs.build_from_config`, on the device.
        inputs: ``(B, 3, H, W)`` on the device.
        samples: One data sample per image, see :func:`~mmitpn.testing.demo_inputs.make_samples`.
        counters: Of :func:`counted_device`.
        warm_up: Run every phase once before it is counted, so that constants that are made once are not counted.

    Returns:
        Counts by phase: ``'forward + loss'``, ``'backward + step'`` (gradients, clipping and AdamW), and
        ``'prediction'`` unless the model is one of pre-training.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def forward() -> Tensor:
        losses = model(inputs, samples, mode='loss')
        return model.parse_losses(losses)[0]

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    found: dict[str, Counts] = {}
    model.train()
    for _ in range(2 if warm_up else 1):
        found[FORWARD], loss = count(counters, forward)
        found[BACKWARD], _ = count(counters, lambda: update(loss))  # noqa: B023 - called at once
    if model_kind(model) != 'pretraining':
        model.eval()
        predict = inference_call(model, inputs, samples, predict=True)
        with torch.no_grad():
            for _ in range(2 if warm_up else 1):
                found[PREDICTION], _ = count(counters, predict)
    return found
