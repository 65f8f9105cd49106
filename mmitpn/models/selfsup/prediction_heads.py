"""The heads of pre-training: mask an image, run backbone and pyramid, predict the teacher's targets, compare.

Each head has ``forward(backbone, neck, images, masks, counts=None)``, which gives predictions by name;
``targets(given, images)``, which gives their targets by the same names from what the teacher gave; and
``losses(predictions, targets, masks)``. ``counts`` are the numbers of visible patches per image, for heads that need
them as Python numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import (
    Mlp,
    RelativeAttention,
    TransformerBlock,
    initialize_weights,
    layer_norm,
    nchw_to_nhwc,
    nhwc_to_nchw,
    run_blocks,
    sincos_pos_embed,
)
from .masking import MaskToken, pack_visible_patches, upsample_mask, visible_ids
from .target_generators import PIXEL_CHANNELS, normalize_pixels, record_outputs

# --- losses --------------------------------------------------------------------------------------------------------


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    'cosine': lambda prediction, target: -F.cosine_similarity(prediction, target, dim=-1),
    'smooth_l1': lambda prediction, target: F.smooth_l1_loss(prediction, target, reduction='none').mean(-1),
    'l2': lambda prediction, target: F.mse_loss(prediction, target, reduction='none').mean(-1),
}


def check_loss(name: str) -> str:
    """Return the name of a loss or raise ValueError."""
    if name not in LOSSES:
        raise ValueError(f'loss is {name!r}; allowed: {", ".join(map(repr, LOSSES))}')
    return name


def loss_map(name: str, prediction: Tensor, target: Tensor) -> Tensor:
    """Loss at every position, ``(B, H, W)``, in fp32.

    Args:
        name: ``'cosine'`` (negative cosine similarity), ``'smooth_l1'`` or ``'l2'``, both means over channels.
        prediction: ``(B, H, W, D)``.
        target: ``(B, H, W, D)``.
    """
    return LOSSES[name](prediction.float(), target.float())


def masked_mean(values: Tensor, masks: Tensor | None) -> Tensor:
    """Mean of ``(B, H, W)`` where ``masks`` is True, or of all where it is None."""
    return values.mean() if masks is None else (values * masks).sum() / masks.sum()


def normalize_features(x: Tensor, over: str = 'channels') -> Tensor:
    """Targets with mean 0 and deviation 1, in fp32.

    Args:
        x: ``(B, H, W, C)``.
        over: ``'channels'``: of each position (LayerNorm without weights); ``'positions'``: of each channel of an image
            (instance normalization), which removes what all positions of an image have in common.
    """
    if over == 'channels':
        return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
    return F.instance_norm(x.float().movedim(-1, 1), eps=1e-6).movedim(1, -1)


def check_target_norm(value: bool | str) -> str | None:
    """Return what targets are normalized over; True is ``'channels'``, False None.

    Raises:
        ValueError: If it is something else.
    """
    if value not in (True, False, 'channels', 'positions'):
        raise ValueError(f"normalize_targets is {value!r}; allowed: True or 'channels', 'positions', False")
    return {True: 'channels', False: None}.get(value, value)


# --- the pyramid's levels as tokens --------------------------------------------------------------------------------


class PyramidFusion(nn.Module):
    """The sum of the pyramid's levels at stride 16, each with its own embedding.

    Args:
        in_channels: Channels of the levels, F.
        channels: Channels of the tokens; with ``'places'`` a multiple of 16.
        embed: ``'conv'``: LayerNorm and a convolution with kernel = stride = 1, 2, 4 for strides 16, 8, 4 (Fast-iTPN);
            ``'places'``: LayerNorm and a linear layer to ``channels`` / 1, 4, 16 at every position, and a patch's
            positions are concatenated (iTPN).
    """

    def __init__(self, in_channels: int, channels: int, *, embed: str = 'conv') -> None:
        super().__init__()
        if embed not in ('conv', 'places'):
            raise ValueError(f"embed is {embed!r}; allowed: 'conv', 'places'")
        self.embed = embed
        self.layers = nn.ModuleList()
        for side in (1, 2, 4):
            if embed == 'conv':
                layer: nn.Module = nn.Conv2d(in_channels, channels, kernel_size=side, stride=side)
            else:
                layer = nn.Linear(in_channels, channels // side**2)
            self.layers.append(nn.Sequential(layer_norm(in_channels), layer))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels ``(B, F, H_i, W_i)`` at strides 4, 8, 16 to tokens ``(B, h, w, channels)``."""
        height = levels[-1].shape[2]
        total: Tensor | None = None
        for (norm, layer), level in zip(self.layers, reversed(levels), strict=True):
            x = norm(nchw_to_nhwc(level))
            if self.embed == 'conv':
                x = nchw_to_nhwc(layer(nhwc_to_nchw(x)))
            else:
                x = fold(layer(x), level.shape[2] // height)
            total = x if total is None else total + x
        return total


def fold(x: Tensor, side: int) -> Tensor:
    """Concatenate the positions of each patch row by row: ``(B, h side, w side, C)`` to ``(B, h, w, side side C)``."""
    batch, height, width, _ = x.shape
    x = x.view(batch, height // side, side, width // side, side, -1).transpose(2, 3)
    return x.reshape(batch, height // side, width // side, -1)


# --- tokens of a teacher -------------------------------------------------------------------------------------------


class AuxiliaryHead(nn.Module):
    """A second prediction, from inside the main stage: a few blocks, norm and linear layer (iTPN with CLIP).

    Args:
        backbone: The backbone; the blocks are like its last one.
        channels: Channels of the teacher's tokens.
        depth: Fraction of the main stage's blocks after which the branch begins.
        blocks: Number of its blocks.
    """

    def __init__(self, backbone: nn.Module, channels: int, *, depth: float = 0.75, blocks: int = 2) -> None:
        super().__init__()
        total = len(backbone.blocks)
        self.after = round(total * depth)
        if not 1 <= self.after <= total:
            raise ValueError(
                f'depth of the auxiliary branch is {depth!r}; allowed: a fraction of the {total} main blocks'
            )
        dim = backbone.out_channels[-1]
        self.blocks = nn.ModuleList(deepcopy(backbone.blocks[-1]) for _ in range(blocks))
        self.norm = layer_norm(dim)
        self.predict = nn.Linear(dim, channels)
        initialize_weights(self, weight_init=backbone.weight_init)

    def forward(self, tokens: Tensor, *, recompute: bool) -> Tensor:
        """Tokens ``(B, h, w, C)`` from inside the main stage to predictions ``(B, h, w, channels)``."""
        return self.predict(self.norm(run_blocks(self.blocks, tokens, recompute=recompute)))


class TokenHead(nn.Module):
    """Masked patches are replaced, and the teacher's tokens predicted from the sum of the pyramid's levels.

    Args:
        backbone: The backbone.
        neck: Its pyramid.
        channels: Channels of the teacher's tokens.
        mask_at: ``'embedding'`` replaces masked patches right after the patch embedding; ``'main'`` before the main
            stage, so that the content of masked patches still reaches the pyramid's two finer levels.
        embed: See :class:`PyramidFusion`.
        norm: ``'shared'``: the backbone's last norm also follows the sum (Fast-iTPN); ``'own'``: one of its own.
        loss: See :func:`loss_map`.
        masked_only: Whether only masked patches count.
        normalize_targets: How the teacher's tokens are normalized, see :func:`normalize_features`; True: over channels.
        auxiliary: Settings of :class:`AuxiliaryHead`; None leaves it out.

    Raises:
        ValueError: If settings do not fit together.
    """

    target_type = 'tokens'

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        channels: int,
        *,
        mask_at: str = 'embedding',
        embed: str = 'conv',
        norm: str = 'shared',
        loss: str = 'cosine',
        masked_only: bool = True,
        normalize_targets: bool | str = False,
        auxiliary: Mapping | None = None,
    ) -> None:
        super().__init__()
        if mask_at not in ('embedding', 'main'):
            raise ValueError(f"mask_at is {mask_at!r}; allowed: 'embedding', 'main'")
        if norm not in ('shared', 'own'):
            raise ValueError(f"norm is {norm!r}; allowed: 'shared', 'own'")
        if norm == 'shared' and not isinstance(backbone.norm, nn.LayerNorm):
            raise ValueError("norm='shared', but the backbone has no last norm (FastITPN has): use norm='own'")
        dim = backbone.out_channels[-1]
        self.mask_at = mask_at
        self.loss = check_loss(loss)
        self.masked_only = masked_only
        self.target_norm = check_target_norm(normalize_targets)
        self.mask = MaskToken(dim // 4, 4) if mask_at == 'embedding' else MaskToken(dim, 1)
        self.embed = PyramidFusion(neck.out_channels, dim, embed=embed)
        self.norm = layer_norm(dim) if norm == 'own' else None
        self.predict = nn.Linear(dim, channels)
        initialize_weights(self, weight_init=backbone.weight_init)
        self.auxiliary = None if auxiliary is None else AuxiliaryHead(backbone, channels, **auxiliary)

    @property
    def authors_names(self) -> dict[str, str]:
        """Names of the weights here and in the authors' pre-training files."""
        names = {'mask.mask_token': 'mask_token'}
        layers = [(f'embed.layers.{i}.{j}', f'decoder_embed.{i}.{j}') for i in range(3) for j in range(2)]
        layers.append(('predict', 'lm_head'))
        if self.norm is not None:
            layers.append(('norm', 'norm'))
        if self.auxiliary is not None:
            layers += [('auxiliary.norm', 'norm_cls'), ('auxiliary.predict', 'lm_cls_head')]
            names |= {
                f'auxiliary.blocks.{name}': f'cls_pt_layers.{name}'
                for name, _ in self.auxiliary.blocks.named_parameters()
            }
        return names | {f'{ours}.{kind}': f'{theirs}.{kind}' for ours, theirs in layers for kind in ('weight', 'bias')}

    def forward(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        images: Tensor,
        masks: Tensor,
        counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Predict the teacher's tokens.

        Args:
            backbone: The backbone.
            neck: Its pyramid.
            images: ``(B, 3, H, W)``.
            masks: ``(B, h, w)``, True where masked.
            counts: Not needed.

        Returns:
            ``tokens`` and, with an auxiliary branch, ``auxiliary``, each ``(B, h, w, channels)``.
        """
        del counts
        x = backbone.patch_embed(images)
        branch = None if self.auxiliary is None else backbone.blocks[self.auxiliary.after - 1]
        with record_outputs(branch) as inner:
            if self.mask_at == 'embedding':
                maps = backbone.forward_stages(self.mask(x, masks))
            else:
                maps = backbone.forward_stages(x, mask_tokens=lambda tokens: self.mask(tokens, masks))
        fused = self.embed(neck([nhwc_to_nchw(x) for x in maps]))
        norm = backbone.norm if self.norm is None else self.norm
        predictions = {'tokens': self.predict(norm(fused))}
        if self.auxiliary is not None:
            predictions['auxiliary'] = self.auxiliary(inner[0], recompute=backbone.with_cp)
        return predictions

    def targets(self, tokens: Tensor, _images: Tensor) -> dict[str, Tensor]:
        """The target of each prediction, from the teacher's tokens ``(B, h, w, channels)``."""
        tokens = tokens if self.target_norm is None else normalize_features(tokens, self.target_norm)
        return {'tokens': tokens} if self.auxiliary is None else {'tokens': tokens, 'auxiliary': tokens}

    def losses(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], masks: Tensor
    ) -> dict[str, Tensor]:
        """A loss for each prediction."""
        counted = masks if self.masked_only else None
        return {
            f'loss_{name}': masked_mean(loss_map(self.loss, predictions[name], target), counted)
            for name, target in targets.items()
        }


# --- pixels --------------------------------------------------------------------------------------------------------


class PixelHead(nn.Module):
    """Masked patches are removed, and their pixels reconstructed: iTPN with pixel supervision (MAE).

    A transformer over all patches follows the sum of the pyramid's levels of the visible ones. The mask token is added
    once for each of the three levels, as in the public code (mmpretrain's ``iTPN`` too).

    Args:
        backbone: The backbone.
        neck: Its pyramid.
        channels: Channels of the targets: 768 for normalized pixels.
        width: Channels of the decoder, a multiple of 16.
        depth: Blocks of the decoder.
        heads: Attention heads of the decoder.
        loss: See :func:`loss_map`.
        fixed_positions: The backbone's position embedding is that of MAE and is not trained.

    Raises:
        ValueError: If the backbone has relative positions.
    """

    target_type = 'tokens'

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
        self.embed = PyramidFusion(neck.out_channels, width, embed='places')
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(sincos_pos_embed(backbone.grid, width), requires_grad=False)
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
            with torch.no_grad():
                backbone.pos_embed.copy_(sincos_pos_embed(backbone.grid, backbone.pos_embed.shape[-1]))
            backbone.pos_embed.requires_grad_(False)

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

    def forward(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        images: Tensor,
        masks: Tensor,
        counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Reconstruct the pixels.

        Args:
            backbone: The backbone.
            neck: Its pyramid.
            images: ``(B, 3, H, W)``.
            masks: ``(B, h, w)``, True where masked.
            counts: Number of visible patches per image; None: read from the masks, for which the host waits.

        Returns:
            ``tokens``, ``(B, h, w, channels)``.

        Raises:
            ValueError: If the grid is not the decoder's.
        """
        batch, height, width = masks.shape
        if (height, width) != tuple(backbone.grid):
            raise ValueError(
                f'the images have {height}x{width} patches; the decoder was built for'
                f' {"x".join(map(str, backbone.grid))}: set img_size of the backbone to the size of the crop'
            )
        ids = visible_ids(masks, counts)
        visible = self.embed(self.encode(backbone, neck, images, ids)).flatten(1, 2)  # B, n, width
        masked = (3 * self.mask_token).to(visible.dtype).expand(batch, height * width, -1)
        x = masked.scatter(1, ids[..., None].expand_as(visible), visible) + self.positions.to(visible.dtype)
        x = run_blocks(self.blocks, x.view(batch, height, width, -1), recompute=backbone.with_cp)
        return {'tokens': self.predict(self.norm(x))}

    @staticmethod
    def encode(backbone: nn.Module, neck: nn.Module, images: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """The pyramid's levels of the visible patches alone, in one row.

        Args:
            backbone: The backbone.
            neck: Its pyramid.
            images: ``(B, 3, H, W)``.
            ids: Indices of the visible patches, ``(B, n)``, from :func:`visible_ids`.

        Returns:
            ``(B, C, 4, 4 n)``, ``(B, C, 2, 2 n)``, ``(B, C, 1, n)``.
        """
        pos_embed = backbone.pos_embed.expand(len(images), -1, -1)
        pos_embed = pos_embed.gather(1, ids[..., None].expand(-1, -1, pos_embed.shape[-1])).unsqueeze(1)
        maps = backbone.forward_stages(backbone.patch_embed(pack_visible_patches(images, ids)), pos_embed)
        return neck([nhwc_to_nchw(x) for x in maps])

    def targets(self, tokens: Tensor, _images: Tensor) -> dict[str, Tensor]:
        """The target of the prediction, the teacher's tokens ``(B, h, w, channels)`` as they are."""
        return {'tokens': tokens}

    def losses(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], masks: Tensor
    ) -> dict[str, Tensor]:
        """The loss of the masked patches."""
        return {'loss_tokens': masked_mean(loss_map(self.loss, predictions['tokens'], targets['tokens']), masks)}


# --- features of the stages ----------------------------------------------------------------------------------------


class FeatureHead(nn.Module):
    """Masked feature modeling: each level of the pyramid predicts a teacher's features of its stage, beside the pixels.

    The teacher sees the whole image, the pyramid the masked one (arXiv 2211.12735, 3.1). The paper gives neither
    weights of the losses nor the layers of the predictions. Our interpretation: masked patches are replaced right after
    the patch embedding; LayerNorm and a linear layer on each level; targets normalized over the positions of an image;
    all levels and the pixels count alike.

    Two of these settings decide whether anything is learned (projects/pretraining_study). Targets that are normalized
    over channels become similar at all positions of an image, and any visible patch predicts them; data2vec (arXiv
    2202.03555) normalizes over positions for speech, against this. Where only masked positions count, the pyramid's
    lateral connections see nothing but the mask token: the gradient of the one at stride 8 has rank 4.

    Args:
        backbone: The backbone.
        neck: Its pyramid.
        channels: Channels of the teacher's maps at strides 4, 8, 16.
        loss: Loss of features, see :func:`loss_map`.
        feature_weight: Weight of the mean over the levels' losses.
        pixel_weight: Weight of the loss of normalized pixels, predicted from the sum of the levels; 0 leaves it out.
        masked_only: Whether only masked patches count in the loss of features. Pixels count where they are masked.
        normalize_targets: How the teacher's features are normalized, see :func:`normalize_features`: over
            ``'positions'``, over ``'channels'`` (or True), or not at all (False).

    Raises:
        ValueError: If a weight is negative, or both are 0.
    """

    target_type = 'maps'

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        channels: Sequence[int],
        *,
        loss: str = 'l2',
        feature_weight: float = 1.0,
        pixel_weight: float = 1.0,
        masked_only: bool = False,
        normalize_targets: bool | str = 'positions',
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
        self.target_norm = check_target_norm(normalize_targets)
        self.mask = MaskToken(dim // 4, 4)
        width = neck.out_channels
        self.predict = nn.ModuleList(nn.Sequential(layer_norm(width), nn.Linear(width, one)) for one in channels)
        self.embed = PyramidFusion(width, dim) if pixel_weight else None
        self.predict_pixels = nn.Sequential(layer_norm(dim), nn.Linear(dim, PIXEL_CHANNELS)) if pixel_weight else None
        initialize_weights(self, weight_init=backbone.weight_init)

    def forward(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        images: Tensor,
        masks: Tensor,
        counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Predict features and pixels.

        Args:
            backbone: The backbone.
            neck: Its pyramid.
            images: ``(B, 3, H, W)``.
            masks: ``(B, h, w)``, True where masked.
            counts: Not needed.

        Returns:
            ``stride4``, ``stride8``, ``stride16``, each ``(B, H_i, W_i, C_i)``, and, unless ``pixel_weight`` is 0,
            ``tokens``, the pixels, ``(B, h, w, 768)``.
        """
        del counts
        maps = backbone.forward_stages(self.mask(backbone.patch_embed(images), masks))
        levels = neck([nhwc_to_nchw(x) for x in maps])
        predictions = {
            f'stride{stride}': predict(nchw_to_nhwc(level))
            for stride, predict, level in zip(neck.strides, self.predict, levels, strict=True)
        }
        if self.embed is not None:
            predictions['tokens'] = self.predict_pixels(self.embed(levels))
        return predictions

    def targets(self, maps: Sequence[Tensor], images: Tensor) -> dict[str, Tensor]:
        """The target of each prediction, from the teacher's maps ``(B, H_i, W_i, C_i)`` and the images."""
        targets = {
            f'stride{4 << i}': one if self.target_norm is None else normalize_features(one, self.target_norm)
            for i, one in enumerate(maps)
        }
        if self.embed is not None:
            targets['tokens'] = normalize_pixels(images)
        return targets

    def losses(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], masks: Tensor
    ) -> dict[str, Tensor]:
        """The loss of each level and that of the pixels."""
        losses = {}
        for name, target in targets.items():
            values = loss_map('l2' if name == 'tokens' else self.loss, predictions[name], target)
            if name == 'tokens':
                losses['loss_pixels'] = self.pixel_weight * masked_mean(values, masks)
                continue
            counted = upsample_mask(masks, values.shape[1] // masks.shape[1]) if self.masked_only else None
            losses[f'loss_{name}'] = self.feature_weight / len(self.predict) * masked_mean(values, counted)
        return losses
