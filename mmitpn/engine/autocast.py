"""Mixed precision without a loss scaler, on any device: what ``--amp`` means where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from torch import nn

from mmitpn.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Optimizer wrapper that runs the forward pass under bf16 autocast.

    mmengine's ``AmpOptimWrapper`` refuses to work on a CPU, and scales losses for the sake of fp16; bf16 has the range
    of fp32 and needs no scale. All arguments are those of ``mmengine.optim.OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast (and gradient accumulation) around the forward pass.

        Args:
            model: The model being trained.
        """
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
