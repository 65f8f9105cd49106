"""Masked patches are removed, and the pixels reconstructed by a decoder: iTPN with pixel supervision (MAE)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..layers import Mlp, RelativeAttention, TransformerBlock, initialize_weights, layer_norm, nhwc_to_nchw, run_blocks
from .losses import check_loss, distance, mean_at
from .masking import row_of_patches, visible_places
from .positions import fix_positions, sine_positions
from .pyramid_sum import PyramidSum


class PixelHead(nn.Module):
    """The pyramid's levels of the visible patches, side by side and summed, and a transformer over all patches.

    The mask token is added once for each of the three levels, as in the public code (mmpretrain's ``iTPN`` too).

    Args:
        backbone: The backbone.
        neck: Its pyramid.
        channels: Channels of the targets: 768 for normalised pixels.
        width: Channels of the decoder, a multiple of 16.
        depth: Blocks of the decoder.
        heads: Attention heads of the decoder.
        loss: See :func:`distance`.
        fixed_positions: The backbone's position embedding is the two-dimensional sine code and is not trained, as in
            MAE.
    """

    target_kind = 'tokens'

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        channels: int,
        *,
        width: int = 512,
        depth: int = 8,
        heads: int = 16,
        loss: str = 'l2',
        fixed_positions: bool = True,
    ) -> None:
        super().__init__()
        if any(getattr(block.attn, 'relative_position', None) for block in backbone.blocks):
            raise ValueError(
                'with relative positions no patch can be removed: use relative_position=None on the backbone'
            )
        self.loss = check_loss(loss)
        self.embed = PyramidSum(neck.out_channels, width, embed='places')
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(sine_positions(backbone.grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, RelativeAttention(width, heads), Mlp(width, 4 * width, sub_norm=False), layer_scale=None
            )
            for _ in range(depth)
        )
        self.norm = layer_norm(width)
        self.predict = nn.Linear(width, channels)
        initialize_weights(self, weight_init='xavier')
        nn.init.normal_(self.mask_token, std=0.02)
        if fixed_positions:
            fix_positions(backbone)

    @property
    def authors_names(self) -> dict[str, str]:
        """Names of the weights here and in the authors' pre-training files."""
        prefixes = (
            ('embed.layers.', 'decoder_embed.'),
            ('mask_token', 'mask_token'),
            ('positions', 'decoder_pos_embed'),
            ('blocks.', 'decoder_blocks.'),
            ('norm.', 'decoder_norm.'),
            ('predict.', 'decoder_pred.'),
        )
        return {
            name: theirs + name.removeprefix(ours)
            for name, _ in self.named_parameters()
            for ours, theirs in prefixes
            if name.startswith(ours)
        }

    def forward(self, backbone: nn.Module, neck: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Reconstruct.

        Args:
            backbone: The backbone.
            neck: Its pyramid.
            images: ``(B, 3, H, W)``.
            masks: ``(B, h, w)``, True where masked.

        Returns:
            ``tokens``, ``(B, h, w, channels)``.
        """
        batch, height, width = masks.shape
        if (height, width) != tuple(backbone.grid):
            raise ValueError(
                f'the images have {height}x{width} patches; the decoder was built for'
                f' {"x".join(map(str, backbone.grid))}: set img_size of the backbone to the size of the crop'
            )
        places = visible_places(masks)
        visible = self.embed(self.encode(backbone, neck, images, places)).flatten(1, 2)  # B, n, width
        hidden = (3 * self.mask_token).to(visible.dtype).expand(batch, height * width, -1)
        x = hidden.scatter(1, places[..., None].expand_as(visible), visible) + self.positions.to(visible.dtype)
        x = run_blocks(self.blocks, x.view(batch, height, width, -1), recompute=backbone.with_cp)
        return {'tokens': self.predict(self.norm(x))}

    @staticmethod
    def encode(backbone: nn.Module, neck: nn.Module, images: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """The pyramid's levels of the visible patches alone, side by side in one row.

        Args:
            backbone: The backbone.
            neck: Its pyramid.
            images: ``(B, 3, H, W)``.
            places: Which patches are visible, ``(B, n)``, of ``visible_places``.

        Returns:
            ``(B, C, 4, 4 n)``, ``(B, C, 2, 2 n)``, ``(B, C, 1, n)``.
        """
        position = backbone.pos_embed.expand(len(images), -1, -1)
        position = position.gather(1, places[..., None].expand(-1, -1, position.shape[-1])).unsqueeze(1)
        maps = backbone.forward_stages(backbone.patch_embed(row_of_patches(images, places)), position)
        return neck([nhwc_to_nchw(x) for x in maps])

    def targets(self, tokens: Tensor, _images: Tensor) -> dict[str, Tensor]:
        """What the prediction is to be."""
        return {'tokens': tokens}

    def losses(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], masks: Tensor
    ) -> dict[str, Tensor]:
        """The loss of the masked patches."""
        return {'loss_tokens': mean_at(distance(self.loss, predictions['tokens'], targets['tokens']), masks)}
