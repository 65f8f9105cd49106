"""Masked feature modeling: each level of the pyramid reconstructs the features of its stage, beside the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..layers import initialize_weights, layer_norm, nchw_to_nhwc, nhwc_to_nchw
from .losses import check_loss, distance, layer_normed, mean_at
from .masking import MaskToken
from .pixels import PIXEL_CHANNELS, normed_pixels
from .pyramid_sum import PyramidSum, spread


class FeatureHead(nn.Module):
    """What a teacher's stages say of the whole image, from the pyramid of the masked one (arXiv 2211.12735, 3.1).

    The paper gives neither weights nor the form of the predictions. Our interpretation: masked patches are replaced
    right after the patch embedding; LayerNorm and a linear layer on each level; targets normed over their channels;
    every level and the pixels count alike; only what is masked counts.

    Args:
        backbone: The backbone.
        neck: Its pyramid.
        channels: Channels of the teacher's maps at strides 4, 8, 16.
        loss: Loss of features, see :func:`distance`.
        feature_weight: Weight of the mean over the levels' losses.
        pixel_weight: Weight of the loss of normalised pixels, predicted from the sum of the levels; 0 leaves it out.
        masked_only: Whether only masked patches count in the loss of features.
        normalize_targets: LayerNorm, without weights, of the teacher's features.
    """

    target_kind = 'maps'

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        channels: Sequence[int],
        *,
        loss: str = 'l2',
        feature_weight: float = 1.0,
        pixel_weight: float = 1.0,
        masked_only: bool = True,
        normalize_targets: bool = True,
    ) -> None:
        super().__init__()
        for name, weight in (('feature_weight', feature_weight), ('pixel_weight', pixel_weight)):
            if not weight >= 0:
                raise ValueError(f'{name} is {weight!r}; allowed: 0 or more')
        if not feature_weight and not pixel_weight:
            raise ValueError('feature_weight and pixel_weight are both 0: nothing would be learned')
        dim = backbone.out_channels[-1]
        self.loss = check_loss(loss)
        self.feature_weight, self.pixel_weight = feature_weight, pixel_weight
        self.masked_only = masked_only
        self.normalize_targets = normalize_targets
        self.mask = MaskToken(dim // 4, 4)
        width = neck.out_channels
        self.predict = nn.ModuleList(nn.Sequential(layer_norm(width), nn.Linear(width, one)) for one in channels)
        self.embed = PyramidSum(width, dim) if pixel_weight else None
        self.predict_pixels = nn.Sequential(layer_norm(dim), nn.Linear(dim, PIXEL_CHANNELS)) if pixel_weight else None
        initialize_weights(self, weight_init=backbone.weight_init)

    def forward(self, backbone: nn.Module, neck: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Reconstruct features and pixels.

        Args:
            backbone: The backbone.
            neck: Its pyramid.
            images: ``(B, 3, H, W)``.
            masks: ``(B, h, w)``, True where masked.

        Returns:
            ``stride4``, ``stride8``, ``stride16``, each ``(B, H_i, W_i, C_i)``, and ``tokens``, the pixels,
            ``(B, h, w, 768)``.
        """
        maps = backbone.forward_stages(self.mask(backbone.patch_embed(images), masks))
        levels = neck([nhwc_to_nchw(x) for x in maps])
        found = {
            f'stride{stride}': predict(nchw_to_nhwc(level))
            for stride, predict, level in zip(neck.strides, self.predict, levels, strict=True)
        }
        if self.embed is not None:
            found['tokens'] = self.predict_pixels(self.embed(levels))
        return found

    def targets(self, maps: Sequence[Tensor], images: Tensor) -> dict[str, Tensor]:
        """What each prediction is to be, from the teacher's maps ``(B, H_i, W_i, C_i)`` and the images."""
        found = {f'stride{4 << i}': layer_normed(one) if self.normalize_targets else one for i, one in enumerate(maps)}
        if self.embed is not None:
            found['tokens'] = normed_pixels(images)
        return found

    def losses(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], masks: Tensor
    ) -> dict[str, Tensor]:
        """The loss of the levels and that of the pixels."""
        losses = {}
        for name, target in targets.items():
            values = distance('l2' if name == 'tokens' else self.loss, predictions[name], target)
            if name == 'tokens':
                losses['loss_pixels'] = self.pixel_weight * mean_at(values, masks)
                continue
            chosen = spread(masks, values.shape[1] // masks.shape[1]) if self.masked_only else None
            losses[f'loss_{name}'] = self.feature_weight / len(self.predict) * mean_at(values, chosen)
        return losses
