"""Predicting a teacher's tokens from the sum of the pyramid's levels: Fast-iTPN, iTPN with CLIP, FastMIM."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor, nn

from ..layers import initialize_weights, layer_norm, nhwc_to_nchw, run_blocks
from .losses import check_loss, distance, layer_normed, mean_at
from .masking import MaskToken
from .pyramid_sum import PyramidSum

MASK_PLACES = {'embedding': 4, 'main': 1}


class Auxiliary(nn.Module):
    """A second prediction, from inside the main stage: some more blocks, norm and linear layer (iTPN with CLIP).

    Args:
        backbone: The backbone; the blocks are as its last one.
        channels: Channels of the teacher's tokens.
        depth: Share of the main stage's blocks after which it begins.
        blocks: How many blocks it has.
    """

    def __init__(self, backbone: nn.Module, channels: int, *, depth: float = 0.75, blocks: int = 2) -> None:
        super().__init__()
        total = len(backbone.blocks)
        self.after = round(total * depth)
        if not 1 <= self.after <= total:
            raise ValueError(f'depth of the auxiliary branch is {depth!r}; allowed: a share of the {total} main blocks')
        dim = backbone.out_channels[-1]
        self.blocks = nn.ModuleList(deepcopy(backbone.blocks[-1]) for _ in range(blocks))
        self.norm = layer_norm(dim)
        self.predict = nn.Linear(dim, channels)
        initialize_weights(self, weight_init=backbone.weight_init)

    def forward(self, tokens: Tensor, *, recompute: bool) -> Tensor:
        """Tokens ``(B, h, w, C)`` from inside the main stage to predictions ``(B, h, w, channels)``."""
        return self.predict(self.norm(run_blocks(self.blocks, tokens, recompute=recompute)))


class TokenHead(nn.Module):
    """Masked patches are replaced, and the teacher's tokens predicted from the pyramid.

    Args:
        backbone: The backbone.
        neck: Its pyramid.
        channels: Channels of the teacher's tokens.
        mask_at: ``'embedding'`` replaces masked patches right after the patch embedding; ``'main'`` before the main
            stage, which lets the pyramid see them through its two finer levels.
        embed: See :class:`PyramidSum`.
        norm: ``'shared'``: the backbone's last norm also follows the sum (Fast-iTPN); ``'own'``: one of its own.
        loss: See :func:`distance`.
        masked_only: Whether only masked patches count.
        normalize_targets: LayerNorm, without weights, of the teacher's tokens.
        auxiliary: Settings of :class:`Auxiliary`; None leaves it out.
    """

    target_kind = 'tokens'

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
        normalize_targets: bool = False,
        auxiliary: Mapping | None = None,
    ) -> None:
        super().__init__()
        if mask_at not in MASK_PLACES:
            raise ValueError(f'mask_at is {mask_at!r}; allowed: {", ".join(map(repr, MASK_PLACES))}')
        if norm not in ('shared', 'own'):
            raise ValueError(f"norm is {norm!r}; allowed: 'shared', 'own'")
        if norm == 'shared' and not isinstance(backbone.norm, nn.LayerNorm):
            raise ValueError("norm='shared', but the backbone has no last norm (FastITPN has): use norm='own'")
        dim = backbone.out_channels[-1]
        self.mask_at = mask_at
        self.loss = check_loss(loss)
        self.masked_only = masked_only
        self.normalize_targets = normalize_targets
        self.mask = MaskToken(dim // 4 if mask_at == 'embedding' else dim, MASK_PLACES[mask_at])
        self.embed = PyramidSum(neck.out_channels, dim, embed=embed)
        self.norm = layer_norm(dim) if norm == 'own' else None
        self.predict = nn.Linear(dim, channels)
        initialize_weights(self, weight_init=backbone.weight_init)
        self.auxiliary = None if auxiliary is None else Auxiliary(backbone, channels, **auxiliary)

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

    def forward(self, backbone: nn.Module, neck: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Predict the teacher's tokens.

        Args:
            backbone: The backbone.
            neck: Its pyramid.
            images: ``(B, 3, H, W)``.
            masks: ``(B, h, w)``, True where masked.

        Returns:
            ``tokens`` and, with an auxiliary branch, ``auxiliary``, each ``(B, h, w, channels)``.
        """
        x = backbone.patch_embed(images)
        inner: list[Tensor] = []
        with _tap(backbone, self.auxiliary, inner):
            if self.mask_at == 'embedding':
                maps = backbone.forward_stages(self.mask(x, masks))
            else:
                maps = backbone.forward_stages(x, mask_tokens=lambda tokens: self.mask(tokens, masks))
        total = self.embed(neck([nhwc_to_nchw(x) for x in maps]))
        norm = backbone.norm if self.norm is None else self.norm
        found = {'tokens': self.predict(norm(total))}
        if self.auxiliary is not None:
            found['auxiliary'] = self.auxiliary(inner[0], recompute=backbone.with_cp)
        return found

    def targets(self, tokens: Tensor, _images: Tensor) -> dict[str, Tensor]:
        """What each prediction is to be, from the teacher's tokens ``(B, h, w, channels)``."""
        tokens = layer_normed(tokens) if self.normalize_targets else tokens
        return {'tokens': tokens} if self.auxiliary is None else {'tokens': tokens, 'auxiliary': tokens}

    def losses(
        self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], masks: Tensor
    ) -> dict[str, Tensor]:
        """A loss for each prediction."""
        chosen = masks if self.masked_only else None
        return {
            f'loss_{name}': mean_at(distance(self.loss, predictions[name], target), chosen)
            for name, target in targets.items()
        }


class _tap:  # noqa: N801 (a context manager, used like a function)
    """Takes down what the main stage holds where the auxiliary branch begins, once."""

    def __init__(self, backbone: nn.Module, auxiliary: Auxiliary | None, inner: list[Tensor]) -> None:
        self.block = None if auxiliary is None else backbone.blocks[auxiliary.after - 1]
        self.inner = inner

    def __enter__(self) -> None:
        def keep(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            self.inner.append(output)

        self.handle = None if self.block is None else self.block.register_forward_hook(keep)

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.remove()
