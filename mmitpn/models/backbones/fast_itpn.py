"""Fast-iTPN: two attention-free stages at strides 4 and 8, and a transformer at stride 16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmitpn.checkpoint.names import FAST
from mmitpn.registry import MODELS

from ..layers import Attention, PatchEmbed, PatchMerge, PointwiseBlock, SwiGLU, TransformerBlock, layer_norm
from ..token_reduction import TokenReduction
from .archs import Arch
from .base import STRIDES, HierarchicalBackbone

MLP_RATIO = 3  # hidden channels of every feed-forward network of the backbone, in units of its channels


@MODELS.register_module()
class FastITPN(HierarchicalBackbone):
    """Backbone of Fast-iTPN (arXiv 2211.12735), exact to the released weights.

    The outputs are those that the pre-trained pyramid (:class:`mmitpn.ITPNPyramid`) and any host's neck take: stages 1
    and 2 just before their merges, and the main stage after its final norm. They are in ``torch.channels_last``
    memory order. Sizes and layout are read off the released code and weights; ``frozen_stages``, checkpointing and
    the treatment of sizes that 16 does not divide are ours.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'`` (published), ``'nano'`` (ours), or a dict of ``depths``,
            ``embed_dim``, ``num_heads``.
        img_size: Side in pixels of the square image that the position embedding is learned for, a multiple of 16. None
            (default): that of the file that is loaded, so that its outputs at that size are those of the authors'
            network; 224 without a file. A number: the embedding of a file of another size is resized once, when it is
            loaded, as in the authors' fine-tuning. Images of any other size are welcome either way: the embedding is
            resized for them in every forward pass.
        out_indices: Which of the maps at strides 4, 8, 16 to return, ascending. Stages after the last one are not run
            and not trained.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over all blocks.
        layer_scale_init_value: Initial layer scale of the main stage; None leaves the parameters out.
        with_cp: Recompute every block in the backward pass instead of keeping its activations.
        frozen_stages: -1 trains everything, 0 freezes the patch and position embeddings, 1 and 2 also the stages at
            stride 4 and 8 with the merges after them, 3 the whole backbone.
        final_norm: Whether the stride-16 map is normed. The authors' classifiers pool first and norm then
            (``fc_norm``): there the classification head has it.
        weight_init: ``'trunc_normal'`` or ``'xavier'``, see :func:`initialize_weights`; the latter is to learn from
            nothing.
        token_migration: Work with fewer tokens from some block of the main stage on, and with all again for the
            pyramid: the arguments of :class:`TokenMigration`, ``dict(keep_ratio=0.5, at=None, score=...)``; ``type``
            names another reducer of ``mmitpn.models.token_reduction.REDUCERS``. ``dict()`` takes the defaults, None
            leaves it out.
        token_gathering: Attention in windows, with gathering tokens between them: the arguments of
            :class:`TokenGathering`, ``dict(window_size=16, num_tokens=4, global_blocks=(), learned=False)``.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads any Fast-iTPN file as it is.

    Raises:
        ValueError: If an argument is outside what is allowed; the message says what is.
    """

    family = FAST
    sub_ln = True

    def __init__(
        self,
        arch: str | Mapping = 'base',
        *,
        img_size: int | None = None,
        out_indices: Sequence[int] = (0, 1, 2),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 0.1,
        with_cp: bool = False,
        frozen_stages: int = -1,
        final_norm: bool = True,
        weight_init: str = 'trunc_normal',
        token_migration: Mapping | None = None,
        token_gathering: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        self._layer_scale = layer_scale_init_value
        self._with_final_norm = final_norm
        super().__init__(
            arch,
            img_size=img_size,
            out_indices=out_indices,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            weight_init=weight_init,
            init_cfg=init_cfg,
        )
        self.token_reduction: TokenReduction | None = None
        self.set_token_reduction(token_migration=token_migration, token_gathering=token_gathering)

    def set_token_reduction(
        self, *, token_migration: Mapping | None = None, token_gathering: Mapping | None = None
    ) -> None:
        """Work with fewer tokens from now on, or with all again: the arguments of that name, of a built network.

        Weights stay as they are; offsets that ``learned=True`` adds start at 0, and go with the setting.

        Args:
            token_migration: As in the constructor.
            token_gathering: As in the constructor.

        Raises:
            ValueError: If an argument is outside what is allowed; the message says what is.
        """
        reduction = None
        if token_migration is not None or token_gathering is not None:
            reduction = TokenReduction(self.depths[2], migration=token_migration, gathering=token_gathering)
            reduction.train(self.training)
        self.token_reduction = reduction
        gathering = None if reduction is None else reduction.gathering
        for index, block in enumerate(self.blocks):
            learned = gathering is not None and index in gathering.learned_blocks
            block.attn.set_gathering_offset(gathering.num_tokens if learned else 0)
        self._freeze()

    def _stem(self, dim: int) -> nn.Module:
        return PatchEmbed(3, dim, stride=STRIDES[0])

    def _stage_block(self, dim: int, drop_path: float) -> nn.Module:
        return PointwiseBlock(dim, MLP_RATIO * dim, sub_norm=True, drop_path=drop_path)

    def _merge(self, dim: int) -> nn.Module:
        return PatchMerge(dim)

    def _main_block(self, sizes: Arch, drop_path: float) -> nn.Module:
        dim = sizes.embed_dim
        attention, mlp = Attention(dim, sizes.num_heads), SwiGLU(dim, MLP_RATIO * dim)
        return TransformerBlock(dim, attention, mlp, layer_scale=self._layer_scale, drop_path=drop_path)

    def _run_main_blocks(self, x: Tensor) -> Tensor:
        if self.token_reduction is None:
            return super()._run_main_blocks(x)
        return self.token_reduction(self.blocks, x, recompute=self.with_cp)

    def _final_norm(self, dim: int) -> nn.Module:
        return layer_norm(dim) if self._with_final_norm else nn.Identity()
