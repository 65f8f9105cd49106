"""Which part of a model its time goes into."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn

# Where a model has them; several names of one stage are added up.
STAGES: Mapping[str, tuple[str, ...]] = {
    'backbone': ('backbone.forward',),
    'neck': ('neck.forward',),
    'pixel decoder': ('panoptic_head.pixel_decoder.forward', 'decode_head.pixel_decoder.forward'),
    'encoder': ('encoder.forward',),
    'decoder': ('panoptic_head.predictor.forward', 'decode_head.predictor.forward', 'decoder.forward'),
    'post-processing': ('panoptic_fusion_head.predict', 'bbox_head.predict_by_feat'),
}


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _timed(owner: Any, name: str, add: Callable[[float], None], device: torch.device) -> Iterator[None]:
    """Time a method of one object."""
    function = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = _now(device)
        try:
            return function(*args, **kwargs)
        finally:
            add(_now(device) - start)

    setattr(owner, name, timed)
    try:
        yield
    finally:
        delattr(owner, name)


def stage_shares(model: nn.Module, call: Callable[[], Any], *, rounds: int = 3) -> dict[str, float]:
    """Shares of the time of a call.

    Args:
        model: A detector or segmentor.
        call: One step of it, such as a prediction.
        rounds: Runs; the shares are those of all together, after one that is not counted.

    Returns:
        Stage -> share from 0 to 1, of those that the model has, and ``'rest'``. They sum to 1.
    """
    device = next(model.parameters()).device
    spent: dict[str, float] = {}
    call()
    with ExitStack() as stack:
        for stage, paths in STAGES.items():
            for path in paths:
                place, _, name = path.rpartition('.')
                try:
                    owner = attrgetter(place)(model)
                except AttributeError:
                    continue
                spent[stage] = 0.0

                def add(seconds: float, stage: str = stage) -> None:
                    spent[stage] += seconds

                stack.enter_context(_timed(owner, name, add, device))
        start = _now(device)
        for _ in range(rounds):
            call()
        total = _now(device) - start
    shares = {stage: seconds / total for stage, seconds in spent.items()}
    return {**shares, 'rest': 1 - sum(shares.values())}
