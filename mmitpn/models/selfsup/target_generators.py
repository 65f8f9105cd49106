"""What masked patches are to become: the base of all teachers, and those that compute their targets from pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models.selfsup.maskfeat import HOGGenerator
from torch import Tensor, nn

from mmitpn.registry import MODELS

from .masking import PATCH_SIZE, patchify

PIXEL_CHANNELS = 3 * PATCH_SIZE * PATCH_SIZE


class Teacher(nn.Module):
    """Gives the targets of the prediction, without gradients.

    A subclass defines :meth:`extract` and sets ``channels``. A network whose weights can be loaded again is passed to
    :meth:`register_frozen`: it is no submodule of the model and not in its checkpoints.

    Attributes:
        target_type: ``'tokens'``: one map at stride 16; ``'maps'``: the three maps at strides 4, 8, 16.
        channels: Channels of the tokens, or of each map.
        network: The frozen network; None before it is loaded.
    """

    target_type = 'tokens'
    channels: int | Sequence[int]
    network: nn.Module | None = None

    def extract(self, images: Tensor, grid: tuple[int, int]) -> Any:
        """Targets of images ``(B, 3, H, W)`` that are normalized as the student's; see :meth:`forward`."""
        raise NotImplementedError

    def load(self) -> None:
        """Read the weights, once. A teacher whose channels are given defers this to :meth:`init_weights`."""

    def register_frozen(self, network: nn.Module) -> None:
        """Freeze a network and keep it outside of the module tree, so that mmengine does not initialize its parts."""
        network.requires_grad_(False)
        network.eval()  # some frameworks' networks return nothing
        self.__dict__['network'] = network

    def init_weights(self) -> None:
        """Called by the model's initialization."""
        self.load()

    def setup(self, backbone: nn.Module) -> None:
        """Called once with the student's backbone, when the model is built."""

    def update(self, backbone: nn.Module) -> None:
        """Called with the student's backbone at the start of every training step."""

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Any:
        """Targets of images.

        Args:
            images: ``(B, 3, H, W)``, normalized as the student's.
            grid: The student's patches along height and width.

        Returns:
            ``(B, h, w, channels)``, or a list of maps ``(B, H_i, W_i, C_i)``, channels last.

        Raises:
            ValueError: If the teacher's grid is another one.
        """
        self.load()
        if self.network is not None:
            self.network.to(images.device)
        return self.extract(images, grid)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        del mode
        return super().train(False)


def check_grid(name: str, found: Sequence[int], grid: tuple[int, int], advice: str) -> None:
    """Raise ValueError if a teacher's grid is not the student's."""
    if tuple(found) != tuple(grid):
        raise ValueError(
            f'the teacher {name} has {"x".join(map(str, found))} tokens, the student {grid[0]}x{grid[1]}: {advice}'
        )


class Renormalize(nn.Module):
    """Changes the normalization of images from one mean and deviation (of 0 to 255) to another.

    Args:
        source: ``mean`` and ``std`` that the images are normalized with.
        target: Those that they shall have.
    """

    def __init__(self, source: Mapping[str, Sequence[float]], target: Mapping[str, Sequence[float]]) -> None:
        super().__init__()
        mean, std, new_mean, new_std = (
            torch.tensor(one[name], dtype=torch.float32).view(3, 1, 1)
            for one in (source, target)
            for name in ('mean', 'std')
        )
        self.register_buffer('scale', std / new_std, persistent=False)
        self.register_buffer('shift', (mean - new_mean) / new_std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` with the new normalization."""
        return images * self.scale + self.shift


@contextmanager
def record_outputs(module: nn.Module | None) -> Iterator[list[Any]]:
    """Append the outputs of a submodule to the list that is returned; None records nothing."""
    outputs: list[Any] = []
    handle = None
    if module is not None:
        handle = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        if handle is not None:
            handle.remove()


# --- pixels --------------------------------------------------------------------------------------------------------


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each patch, ``(B, h, w, 1)``, as in MAE: unbiased, with 1e-6 below the root."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def normalize_pixels(images: Tensor) -> Tensor:
    """Patches ``(B, h, w, 768)`` of images, each with mean 0 and deviation 1."""
    patches = patchify(images)
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


@MODELS.register_module()
class PixelTeacher(Teacher):
    """The pixels of each patch, 768 values in the order row, column, color.

    Args:
        normalize: Each patch with mean 0 and deviation 1, as in MAE.
    """

    channels = PIXEL_CHANNELS

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def extract(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, 768)``."""
        del grid
        return normalize_pixels(images) if self.normalize else patchify(images)


# --- histograms of oriented gradients ------------------------------------------------------------------------------


class _Hog(HOGGenerator):
    """mmpretrain's histograms without their last step, which reshapes for a grid of 14x14."""

    def _reshape(self, hog_feat: Tensor) -> Tensor:
        return hog_feat


@MODELS.register_module()
class HogTeacher(Teacher):
    """Histograms of oriented gradients, FastMIM's targets (arXiv 2212.06593), by mmpretrain's ``HOGGenerator``.

    Args:
        bins: Directions.
        cell: Pixels along a cell's side; a divisor of 16.
    """

    def __init__(self, bins: int = 9, cell: int = 8) -> None:
        super().__init__()
        if PATCH_SIZE % cell:
            raise ValueError(f'cell is {cell!r}; allowed: 1, 2, 4, 8, 16 (cells fill a patch of {PATCH_SIZE} pixels)')
        self.register_frozen(_Hog(nbins=bins, pool=cell, gaussian_window=16))
        self.channels = 3 * bins * (PATCH_SIZE // cell) ** 2

    def extract(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, 3 bins (16 / cell)^2)``."""
        height, width = images.shape[-2:]
        side = max(height, width)
        with torch.autocast(images.device.type, enabled=False):
            x = images.float()
            if height != width:
                # HOGGenerator repeats its Gaussian window by the height only, so the image is padded to a square.
                x = F.pad(x, (0, side - width, 0, side - height), mode='replicate')
            cells = self.network(x).flatten(1, 2)  # B, colors x bins, cells, cells
            n = cells.shape[-1] * PATCH_SIZE // side  # cells along a patch's side
            cells = cells[:, :, : grid[0] * n, : grid[1] * n]
            x = cells.unflatten(3, (grid[1], n)).unflatten(2, (grid[0], n))  # B, c, h, n, w, n
            return x.permute(0, 2, 4, 1, 3, 5).flatten(3)


# --- random numbers ------------------------------------------------------------------------------------------------


@MODELS.register_module()
class RandomTeacher(Teacher):
    """Tokens of one convolution with random weights, for tests only; it warns of this.

    Args:
        channels: Channels of the tokens.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        print_log("teacher='random' has random weights: nothing useful can be learned from it", 'current', 30)
        self.channels = channels
        embed = nn.Conv2d(3, channels, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            embed.weight.copy_(torch.randn(embed.weight.shape, generator=generator) / 28)
            embed.bias.zero_()
        self.register_frozen(embed)

    def extract(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, channels)``."""
        tokens = self.network(images).permute(0, 2, 3, 1)
        check_grid('random', tokens.shape[1:3], grid, 'give images of whole patches')
        return tokens
