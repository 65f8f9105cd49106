"""One training and one inference step of a model on a made-up picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm

from mmitpn.analysis.host_model import build_from_config, inference_call, loss_call, make_samples

SIZE = (384, 416)  # pixels: 3x3 places even at stride 128, and more than detectors have queries


@contextmanager
def process_group() -> Iterator[None]:
    """Make a process group of this process alone, which mmcv's ``MMSyncBN`` needs when it is built."""
    if not dist.is_available() or dist.is_initialized():
        yield
        return
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def try_model(config: str | Path, *, size: tuple[int, int] = SIZE) -> float:
    """Build a config's model with random weights, train it for one step and let it predict.

    Args:
        config: The config file.
        size: Height and width of the made-up pictures.

    Returns:
        The loss.

    Raises:
        ValueError: If the loss is not finite, or the backbone is given no gradient.
    """
    # Some heads ask the runner how far the training is.
    hub = MessageHub.get_current_instance()
    hub.update_info_dict({'epoch': 0, 'iter': 0, 'max_epochs': 1, 'max_iters': 1})
    with process_group():
        model = revert_sync_batchnorm(build_from_config(config))
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, *size)
    made = {'objects': 2, 'device': torch.device('cpu')}
    loss = loss_call(model, inputs, make_samples(model, size, batch=2, **made))()
    loss.backward()
    if not loss.isfinite():
        raise ValueError(f'the loss of the first step is {float(loss)}')
    backbone = next(module for module in model.modules() if type(module).__name__ == 'FastITPN')
    if backbone.blocks[0].attn.qkv.weight.grad is None:
        raise ValueError('the backbone is given no gradient')
    model.eval()
    with torch.no_grad():
        inference_call(model, inputs[:1], make_samples(model, size, batch=1, **made), predict=True)()
    return float(loss.detach())
