"""The student's own moving average as its teacher."""

from __future__ import annotations

import torch
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from mmitpn.registry import MODELS

from ..schedule import cosine
from .base import Teacher


class _Average(ExponentialMovingAverage):
    """An average whose momentum ends at another value than it began with."""

    def __init__(self, model: nn.Module, start: float, end: float) -> None:
        super().__init__(model, momentum=1 - start)
        self.start, self.end = start, end

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        """Move one parameter towards the student's."""
        hub = MessageHub.get_current_instance()
        total = hub.runtime_info.get('max_iters')  # unknown where no runner runs: the momentum stays
        momentum = self.start if not total else cosine(self.start, self.end, float(steps) / int(total))
        averaged_param.lerp_(source_param, 1 - momentum)


@MODELS.register_module()
class MovingAverageTeacher(Teacher):
    """A moving average of the backbone that sees the whole image (arXiv 2211.12735, 3.1).

    The momentum is not published. Our interpretation: from 0.996 to 1 by a cosine over the run. It moves at every
    training step, with gradient accumulation once for each part. Checkpoints hold it, so that a resumed run
    goes on exactly.

    Args:
        momentum: Share of itself that the average keeps at first.
        end_momentum: Share in the end.
    """

    kind = 'maps'

    def __init__(self, momentum: float = 0.996, end_momentum: float = 1.0) -> None:
        super().__init__()
        if not 0 < momentum <= end_momentum <= 1:
            raise ValueError(
                f'momentum is {momentum!r}, end_momentum {end_momentum!r}; allowed: 0 < momentum <= end_momentum <= 1'
            )
        self.momentum, self.end_momentum = momentum, end_momentum
        self.average: _Average | None = None

    def begin(self, backbone: nn.Module) -> None:
        """Have a network like the backbone."""
        self.average = _Average(backbone, self.momentum, self.end_momentum)
        self.average.requires_grad_(False)
        self.channels = backbone.out_channels
        self.train()

    def copy(self, backbone: nn.Module) -> None:
        """Become a copy of the backbone."""
        self.average.module.load_state_dict(backbone.state_dict())
        self.average.steps.zero_()

    def follow(self, backbone: nn.Module) -> None:
        """Move towards the backbone; the first step copies it."""
        self.average.update_parameters(backbone)

    def see(self, images: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """The stages' maps, channels last."""
        del grid
        backbone = self.average.module
        with torch.no_grad():
            return backbone.forward_stages(backbone.patch_embed(images))
