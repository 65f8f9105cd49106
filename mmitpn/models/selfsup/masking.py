"""Patches of images, which of them are masked, and what the network is given in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PATCH_SIZE = 16  # pixels of a patch's side: the stride of the main stage


# --- patches -------------------------------------------------------------------------------------------------------


def patch_grid(images: Tensor) -> tuple[int, int]:
    """Patches of images ``(B, 3, H, W)`` along height and width.

    Raises:
        ValueError: If the sides are not multiples of 16: each patch must be inside the image.
    """
    height, width = images.shape[-2:]
    if height % PATCH_SIZE or width % PATCH_SIZE:
        raise ValueError(
            f'the images are {height}x{width} pixels; pre-training needs sides that are multiples of {PATCH_SIZE}:'
            ' set the crop of the pipeline (RandomResizedCrop scale=...)'
        )
    return height // PATCH_SIZE, width // PATCH_SIZE


def patchify(images: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` as patches ``(B, h, w, 768)`` in the order row, column, color."""
    height, width = patch_grid(images)
    x = images.view(len(images), 3, height, PATCH_SIZE, width, PATCH_SIZE)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3)


def unpatchify(patches: Tensor) -> Tensor:
    """The inverse of :func:`patchify`."""
    batch, height, width, _ = patches.shape
    x = patches.view(batch, height, width, PATCH_SIZE, PATCH_SIZE, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, height * PATCH_SIZE, width * PATCH_SIZE)


def pack_visible_patches(images: Tensor, ids: Tensor) -> Tensor:
    """The chosen patches of each image in one row, for layers that never look beyond a patch.

    Args:
        images: ``(B, 3, H, W)``.
        ids: Indices of the patches, ``(B, n)``.

    Returns:
        ``(B, 3, 16, 16 n)``.
    """
    batch, channels = images.shape[:2]
    height, width = patch_grid(images)
    patches = images.view(batch, channels, height, PATCH_SIZE, width, PATCH_SIZE).transpose(3, 4).flatten(2, 3)
    index = ids[:, None, :, None, None].expand(-1, channels, -1, PATCH_SIZE, PATCH_SIZE)
    chosen = patches.gather(2, index)  # B, 3, n, 16, 16
    return chosen.transpose(2, 3).reshape(batch, channels, PATCH_SIZE, -1)


# --- masks ---------------------------------------------------------------------------------------------------------


def check_mask_ratio(value: float) -> float:
    """Return the fraction of the patches to mask or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f'mask_ratio is {value!r}; allowed: more than 0 and less than 1')
    return float(value)


def num_masked(grid: tuple[int, int], ratio: float) -> int:
    """Number of patches that :func:`random_masks` masks: at least one and not all."""
    patches = grid[0] * grid[1]
    return min(max(patches - int(patches * (1 - ratio)), 1), patches - 1)


def random_masks(batch: int, grid: tuple[int, int], ratio: float, device: torch.device | None = None) -> Tensor:
    """Mask patches at random, the same number in every image, at least one and not all.

    Block-wise masks are made by the data pipeline, whose mask generator has their ratio: see :func:`pipeline_masks`.

    Returns:
        ``(B, h, w)``, True where masked.
    """
    patches = grid[0] * grid[1]
    order = torch.rand(batch, patches, device=device).argsort(1)
    masks = torch.zeros(batch, patches, dtype=torch.bool, device=device)
    return masks.scatter_(1, order[:, : num_masked(grid, ratio)], True).view(batch, *grid)


def pipeline_masks(data_samples: Sequence[Any] | None, grid: tuple[int, int]) -> Tensor:
    """The masks that the data pipeline made (mmpretrain's ``BEiTMaskGenerator`` or ``SimMIMMaskGenerator``).

    Returns:
        ``(B, h, w)`` on the CPU, True where masked.

    Raises:
        ValueError: If a sample has no mask, or one for another grid.
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
    return torch.stack(masks).bool()


def count_visible(masks: Tensor) -> list[int]:
    """Number of patches per image that masks ``(B, h, w)`` leave; the host waits if they are on a GPU."""
    return (~masks.flatten(1)).sum(1).tolist()


def upsample_mask(masks: Tensor, scale: int) -> Tensor:
    """Masks ``(B, h, w)`` for a map with ``scale`` positions along a patch's side, ``(B, h scale, w scale)``."""
    return masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def visible_ids(masks: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Indices of the patches that are not masked, ``(B, n)``, ascending.

    Args:
        masks: ``(B, h, w)``, True where masked.
        counts: Number of patches per image that are not masked; None: :func:`count_visible`.

    Raises:
        ValueError: If the number differs between images, or is 0.
    """
    counts = count_visible(masks) if counts is None else counts
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            f'the images of a batch have {sorted(set(counts))} visible patches; to remove the masked ones, each image'
            ' needs the same number of visible ones, at least one: let the mask generator mask a fixed number'
        )
    # A stable sort puts the visible ones first and keeps their order.
    return masks.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)[:, : counts[0]]


class MaskToken(nn.Module):
    """The trained vector that replaces masked patches, in the released files' order channel, row, column.

    Args:
        channels: Channels of one position.
        scale: Positions along a patch's side: 4 right after the patch embedding, where each of the 16 has a vector of
            its own, 1 in the main stage.
    """

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.mask_token = nn.Parameter(torch.zeros(1, 1, scale * scale * channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        """Replace masked patches.

        Args:
            x: ``(B, h * scale, w * scale, channels)``.
            masks: ``(B, h, w)``, True where masked.
        """
        side = self.scale
        batch, height, width = masks.shape
        patches = x.view(batch, height, side, width, side, -1)
        token = self.mask_token.view(-1, side, side).permute(1, 2, 0).contiguous().view(1, 1, side, 1, side, -1)
        return torch.where(masks.view(batch, height, 1, width, 1, 1), token.to(x.dtype), patches).view(x.shape)
