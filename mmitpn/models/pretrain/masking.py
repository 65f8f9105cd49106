"""Which patches are masked, and what the network sees of an image with masked patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PATCH = 16  # pixels of a patch's side: the stride of the main stage
PLACES = 4  # places of stride 4 along a patch's side


def check_mask_ratio(value: float) -> float:
    """Return a share of the patches to mask or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f'mask_ratio is {value!r}; allowed: more than 0 and less than 1')
    return float(value)


def grid_of(images: Tensor) -> tuple[int, int]:
    """Patches of images ``(B, 3, H, W)`` along height and width.

    Raises:
        ValueError: If 16 does not divide the sides: no patch may be in part outside.
    """
    height, width = images.shape[-2:]
    if height % PATCH or width % PATCH:
        raise ValueError(
            f'the images are {height}x{width} pixels; pre-training needs sides that are multiples of {PATCH}:'
            ' set the crop of the pipeline (RandomResizedCrop scale=...)'
        )
    return height // PATCH, width // PATCH


def random_masks(batch: int, grid: tuple[int, int], ratio: float, device: torch.device | None = None) -> Tensor:
    """Mask patches at random, as many in every image, at least one and not all.

    Returns:
        ``(B, h, w)``, True where masked.
    """
    patches = grid[0] * grid[1]
    masked = min(max(patches - int(patches * (1 - ratio)), 1), patches - 1)
    order = torch.rand(batch, patches, device=device).argsort(1)
    masks = torch.zeros(batch, patches, dtype=torch.bool, device=device)
    return masks.scatter_(1, order[:, :masked], True).view(batch, *grid)


def masks_of(data_samples: Sequence[Any] | None, grid: tuple[int, int], device: torch.device) -> Tensor:
    """The masks that the data pipeline made (mmpretrain's ``BEiTMaskGenerator`` or ``SimMIMMaskGenerator``).

    Returns:
        ``(B, h, w)``, True where masked.

    Raises:
        ValueError: If a sample has none, or one for another grid.
    """
    masks = []
    for sample in data_samples or ():
        if 'mask' not in sample:
            raise ValueError(
                "masking='pipeline', but a sample has no mask: put BEiTMaskGenerator into the pipeline and"
                " PackInputs(algorithm_keys=['mask']), or use masking='random'"
            )
        mask = torch.as_tensor(sample.mask)
        if tuple(mask.shape) != grid:
            raise ValueError(
                f'the pipeline made a mask for {"x".join(map(str, mask.shape))} patches, but the image has'
                f' {grid[0]}x{grid[1]}: set input_size={grid[0]} of the mask generator'
            )
        masks.append(mask)
    if not masks:
        raise ValueError("masking='pipeline', but there are no data samples: give them, or use masking='random'")
    return torch.stack(masks).to(device=device, dtype=torch.bool)


class MaskToken(nn.Module):
    """What stands in the place of masked patches: one vector, in the released files' order channel, row, column.

    Args:
        channels: Channels of one place.
        places: Places along a patch's side: 4 right after the patch embedding, where each of the 16 places has a vector
            of its own, 1 in the main stage.
    """

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.places = places
        self.mask_token = nn.Parameter(torch.zeros(1, 1, places * places * channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        """Replace masked patches.

        Args:
            x: ``(B, h * places, w * places, channels)``.
            masks: ``(B, h, w)``, True where masked.
        """
        side = self.places
        batch, height, width = masks.shape
        patches = x.view(batch, height, side, width, side, -1)
        token = self.mask_token.view(-1, side, side).permute(1, 2, 0).contiguous().view(1, 1, side, 1, side, -1)
        return torch.where(masks.view(batch, height, 1, width, 1, 1), token.to(x.dtype), patches).view(x.shape)


def visible_places(masks: Tensor) -> Tensor:
    """Positions of the patches that are not masked, ``(B, n)``, ascending.

    Raises:
        ValueError: If not every image has as many, or one has none.
    """
    hidden = masks.flatten(1)
    counts = (~hidden).sum(1).tolist()
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            f'the images of a batch have {sorted(set(counts))} visible patches; removing the others needs as many in'
            ' each and at least one: let the mask generator mask a fixed number'
        )
    # A stable sort puts the visible ones first and keeps their order.
    return hidden.to(torch.uint8).argsort(dim=1, stable=True)[:, : counts[0]]


def row_of_patches(images: Tensor, places: Tensor) -> Tensor:
    """Some patches of each image side by side: what never leaves its patch works on them as on any image.

    Args:
        images: ``(B, 3, H, W)``.
        places: ``(B, n)``.

    Returns:
        ``(B, 3, 16, 16 n)``.
    """
    batch, channels, height, width = images.shape
    patches = images.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH).transpose(3, 4).flatten(2, 3)
    index = places[:, None, :, None, None].expand(-1, channels, -1, PATCH, PATCH)
    chosen = patches.gather(2, index)  # B, 3, n, 16, 16
    return chosen.transpose(2, 3).reshape(batch, channels, PATCH, -1)
