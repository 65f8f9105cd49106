"""What every teacher is: a frozen network that says what masked patches are to become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Teacher(nn.Module):
    """A frozen network.

    A subclass defines :meth:`see` and sets ``channels``. A network that can be had again is given to :meth:`hold`: it
    is no part of the model, and not in its checkpoints.

    Attributes:
        kind: ``'tokens'``: one map at stride 16; ``'maps'``: the three maps at strides 4, 8, 16.
        channels: Channels of the tokens, or of each map.
        network: What is held; None before it is loaded.
    """

    kind = 'tokens'
    channels: int | Sequence[int]
    network: nn.Module | None = None

    def see(self, images: Tensor, grid: tuple[int, int]) -> Any:
        """What the teacher says of images ``(B, 3, H, W)`` that are normalised as the student's."""
        raise NotImplementedError

    def load(self) -> None:
        """Read the weights, once. A teacher that is told its channels waits with this for :meth:`init_weights`."""

    def hold(self, network: nn.Module) -> None:
        """Keep a frozen network beside the model: mmengine lets no part of it appear when weights are initialised."""
        self.__dict__['network'] = freeze(network)

    def init_weights(self) -> None:
        """What the model's initialisation calls."""
        self.load()

    def begin(self, backbone: nn.Module) -> None:
        """See the student's backbone once, when the model is built."""

    def follow(self, backbone: nn.Module) -> None:
        """Take note of the student's backbone, at the start of every training step."""

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Any:
        """Targets of images.

        Args:
            images: ``(B, 3, H, W)``, normalised as the student's.
            grid: The student's patches along height and width.

        Returns:
            ``(B, h, w, channels)``, or a list of maps ``(B, H_i, W_i, C_i)``, channels last.

        Raises:
            ValueError: If the teacher has other places.
        """
        self.load()
        if self.network is not None:
            self.network.to(images.device)
        return self.see(images, grid)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        del mode
        return super().train(False)


def freeze(module: nn.Module) -> nn.Module:
    """Switch a network's training off for good."""
    module.requires_grad_(False)
    module.eval()  # some hosts' networks return nothing
    return module


def check_grid(name: str, found: Sequence[int], grid: tuple[int, int], advice: str) -> None:
    """Raise ValueError if a teacher's grid is not the student's."""
    if tuple(found) != tuple(grid):
        raise ValueError(
            f'the teacher {name} has {"x".join(map(str, found))} tokens, the student {grid[0]}x{grid[1]}: {advice}'
        )


def renormalize(images: Tensor, source: Mapping[str, Sequence[float]], target: Mapping[str, Sequence[float]]) -> Tensor:
    """Images normalised with one mean and deviation (of 0 to 255), normalised with another."""
    (mean, std), (new_mean, new_std) = (
        (images.new_tensor(one['mean']), images.new_tensor(one['std'])) for one in (source, target)
    )
    scale, shift = std / new_std, (mean - new_mean) / new_std
    return images * scale[:, None, None] + shift[:, None, None]
