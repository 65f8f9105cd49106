"""Mixed precision: what ``--amp`` means, on GPUs and where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from torch import nn

from mmitpn.config_types import is_type, type_name
from mmitpn.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Optimizer wrapper that runs the forward pass under bf16 autocast, on any device and without a loss scaler.

    mmengine's ``AmpOptimWrapper`` refuses to work on a CPU, and scales losses for the sake of fp16; bf16 has the range
    of fp32 and needs no scale. All arguments are those of ``mmengine.optim.OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast (and gradient accumulation) around the forward pass."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def has_bf16() -> bool:
    """Whether this device computes in bf16: CPUs, and GPUs from Ampere on (torch emulates it on older ones)."""
    device = get_device()
    return device == 'cpu' or (device == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False))


def apply_amp(cfg: Config) -> None:
    """Switch mixed precision on in a config: bf16 where the device has it, otherwise fp16 with loss scaling.

    bf16 comes first: it has the range of fp32, so that no loss is scaled, no step is skipped, and the host waits for no
    check of the gradients.

    Args:
        cfg: Config with an ``optim_wrapper``; changed in place.

    Raises:
        ValueError: If there is no ``optim_wrapper``, or one of another class than ``OptimWrapper``.
    """
    wrapper = cfg.get('optim_wrapper')
    if not wrapper:
        raise ValueError(f'--amp needs optim_wrapper in the config, which has {wrapper!r}')
    kind = type_name(wrapper) or 'OptimWrapper'
    if is_type(wrapper, 'AmpOptimWrapper', 'BFloat16OptimWrapper'):
        print_log(f'--amp: the config has it already ({kind})', 'current')
    elif kind != 'OptimWrapper':
        raise ValueError(
            f'--amp cannot change optim_wrapper.type={kind!r}; allowed: OptimWrapper; set the precision there'
        )
    elif has_bf16():
        wrapper.type = 'mmitpn.BFloat16OptimWrapper'
    else:
        print_log('--amp: fp16 with loss scaling, since this GPU has no bf16', 'current')
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
