"""Teachers without a network: pixels, histograms of gradients, and random numbers for tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models.selfsup.maskfeat import HOGGenerator
from torch import Tensor, nn

from mmitpn.registry import MODELS

from ..masking import PATCH
from ..pixels import PIXEL_CHANNELS, normed_pixels, patches_of
from .base import Teacher, check_grid


@MODELS.register_module()
class PixelTeacher(Teacher):
    """The pixels of each patch, 768 values in the order row, column, colour.

    Args:
        normalize: Each patch with mean 0 and deviation 1, as in MAE.
    """

    channels = PIXEL_CHANNELS

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def see(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, 768)``."""
        del grid
        return normed_pixels(images) if self.normalize else patches_of(images)


class _Hog(HOGGenerator):
    """mmpretrain's histograms as they are, where its own reshaping wants a grid of 14x14."""

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
        if PATCH % cell:
            raise ValueError(f'cell is {cell!r}; allowed: 1, 2, 4, 8, 16 (cells fill a patch of {PATCH} pixels)')
        self.hold(_Hog(nbins=bins, pool=cell, gaussian_window=16))
        self.channels = 3 * bins * (PATCH // cell) ** 2

    def see(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, 3 bins (16 / cell)^2)``."""
        with torch.autocast(images.device.type, enabled=False):
            return self._see(images, grid)

    def _see(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        if images.shape[-1] == images.shape[-2]:
            cells = self.network(images.float())
        else:  # the host repeats its Gaussian window by the height only: a square holds the image
            side = max(images.shape[-2:])
            square = F.pad(images.float(), (0, side - images.shape[-1], 0, side - images.shape[-2]), mode='replicate')
            cells = self.network(square)
        cells = cells.flatten(1, 2)  # B, colours x bins, cells, cells
        places = cells.shape[-1] * PATCH // max(images.shape[-2:])
        cells = cells[:, :, : grid[0] * places, : grid[1] * places]
        x = cells.unflatten(3, (grid[1], places)).unflatten(2, (grid[0], places))  # B, c, h, p, w, p
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3)


@MODELS.register_module()
class RandomTeacher(Teacher):
    """Tokens of a network of random weights: for tests only, and it says so.

    Args:
        channels: Channels of the tokens.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        print_log("teacher='random' has random weights: nothing worth knowing can be learned from it", 'current', 30)
        self.channels = channels
        embed = nn.Conv2d(3, channels, kernel_size=PATCH, stride=PATCH)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            embed.weight.copy_(torch.randn(embed.weight.shape, generator=generator) / 28)
            embed.bias.zero_()
        self.hold(embed)

    def see(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """``(B, h, w, channels)``."""
        tokens = self.network(images).permute(0, 2, 3, 1)
        check_grid('random', tokens.shape[1:3], grid, 'give images of whole patches')
        return tokens
