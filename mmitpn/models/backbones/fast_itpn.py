"""Fast-iTPN: two attention-free stages at strides 4 and 8, and a transformer at stride 16.

:class:`BaseITPN` is the walk of an image through the network, which the older family (``itpn.py``) shares;
:class:`FastITPN` adds the layers of Fast-iTPN, token migration and token gathering.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmitpn.checkpoint import FileInfo, PretrainedModule
from mmitpn.registry import MODELS

from ..cpu_inference import chunk_on_cpu
from ..layers import (
    ConvPatchMerging,
    PatchEmbed,
    PointwiseBlock,
    StateDictAdapter,
    SwiGLU,
    TransformerBlock,
    WeightFit,
    check_pos_embed_init,
    check_weight_init,
    initialize_weights,
    is_dynamic,
    layer_norm,
    maybe_checkpoint,
    nhwc_to_nchw,
    plain_sizes,
    resample_abs_pos_embed,
    run_blocks,
    sincos_pos_embed,
)
from ..token_reduction import TokenReduction, WindowedAttention, check_blocks

STRIDES = (4, 8, 16)
DEFAULT_IMG_SIZE = 224  # where neither a setting nor a file says another

# depths: blocks at stride 4, 8 and 16. embed_dim: channels at stride 16; half and a quarter of them at 8 and 4.
# nano is ours, for the quick start and tests; the others are the published ones.
ARCHS: dict[str, dict] = {
    'nano': {'depths': (1, 1, 4), 'embed_dim': 192, 'num_heads': 3},
    'tiny': {'depths': (1, 1, 12), 'embed_dim': 384, 'num_heads': 6},
    'small': {'depths': (2, 2, 20), 'embed_dim': 384, 'num_heads': 6},
    'base': {'depths': (3, 3, 24), 'embed_dim': 512, 'num_heads': 8},
    'large': {'depths': (2, 2, 40), 'embed_dim': 768, 'num_heads': 12},
}
_FIELDS = ('depths', 'embed_dim', 'num_heads')


@dataclass(frozen=True)
class Arch:
    """Size of a network.

    Attributes:
        depths: Number of blocks at strides 4, 8 and 16.
        embed_dim: Channels of the main stage, at stride 16; the others have a half and a quarter of them.
        num_heads: Attention heads of the main stage.
    """

    depths: tuple[int, int, int]
    embed_dim: int
    num_heads: int

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels at strides 4, 8 and 16."""
        return self.embed_dim // 4, self.embed_dim // 2, self.embed_dim


def resolve_arch(arch: str | Mapping) -> Arch:
    """Turn the ``arch`` of a config into checked sizes.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depths`` (three numbers of blocks), ``embed_dim`` and ``num_heads``.

    Raises:
        ValueError: If the name or a field is unknown, missing or impossible.
        TypeError: If ``arch`` is neither a string nor a dict.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'unknown arch {arch!r}; allowed: {", ".join(map(repr, ARCHS))}, or a dict of {_FIELDS}')
        arch = ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(
            f'arch is {arch!r} ({type(arch).__name__}); give a name ({", ".join(ARCHS)}) or a dict of {_FIELDS}'
        )
    if set(arch) != set(_FIELDS):
        raise ValueError(f'arch has the fields {sorted(arch)}; it needs exactly {sorted(_FIELDS)}')
    depths, embed_dim, num_heads = arch['depths'], arch['embed_dim'], arch['num_heads']
    if (
        not isinstance(depths, Sequence)
        or len(depths) != 3
        or not all(isinstance(depth, int) and depth >= 0 for depth in depths)
        or depths[2] < 1
    ):
        raise ValueError(
            f'arch depths are {depths!r}; give three numbers of blocks (stride 4, 8, 16), the last at least 1'
        )
    if not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f'arch num_heads is {num_heads!r}; give an integer of at least 1')
    if not isinstance(embed_dim, int) or embed_dim < 4 or embed_dim % 4 or embed_dim % num_heads:
        raise ValueError(f'arch embed_dim is {embed_dim!r}; give a multiple of 4 and of num_heads ({num_heads})')
    return Arch(tuple(depths), embed_dim, num_heads)


# --- images in, maps out ---------------------------------------------------------------------------------------------


def check_images(x: Tensor, channels: int = 3) -> None:
    """Raise unless ``x`` is a batch of floating-point images. Values are not read, so a device is not waited for.

    Args:
        x: What was given to the backbone; ``(B, channels, H, W)`` is allowed, H and W at least 1.
        channels: Channels of an image.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape is another.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f'the backbone was given a {type(x).__name__}; it takes a float tensor (B, {channels}, H, W)')
    if not x.is_floating_point():
        raise TypeError(
            f'the backbone was given {x.dtype} values; it takes normalized floats: let the data preprocessor'
            ' (mean, std) run first, or call .float()'
        )
    if x.ndim == 4 and x.shape[1] != channels:
        raise ValueError(
            f'the backbone was given the shape {tuple(x.shape)}; it takes (B, {channels}, H, W): for images of'
            f' {x.shape[1]} channels build it with in_channels={x.shape[1]}'
        )
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(
            f'the backbone was given the shape {tuple(x.shape)}; it takes (B, {channels}, H, W), nothing empty'
        )


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad ``(B, C, H, W)`` with zeros at the right and bottom up to the next multiple of ``multiple`` pixels."""
    height, width = x.shape[-2:]
    bottom, right = (multiple * ((side + multiple - 1) // multiple) - side for side in (height, width))
    if is_dynamic(height) or is_dynamic(width) or right or bottom:
        return F.pad(x, (0, right, 0, bottom))
    return x


def crop_to_image(x: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Cut what was padded off a map: ``(B, H, W, C)`` to ``(B, C, ceil(height / stride), ceil(width / stride))``.

    The copy that this takes where something is cut keeps the map dense, as heads that view it expect.
    """
    return nhwc_to_nchw(x[:, : (height + stride - 1) // stride, : (width + stride - 1) // stride].contiguous())


# --- the networks -----------------------------------------------------------------------------------------------------


class BaseITPN(StateDictAdapter, PretrainedModule):
    """Base of the backbones: two stages of pointwise blocks and a main stage at stride 16.

    A subclass builds ``patch_embed``, ``stage1``, ``merge1``, ``stage2``, ``merge2``, ``blocks`` and ``norm`` after
    this constructor, calls :meth:`reset_parameters` and :meth:`freeze` at the end of its own, and sets ``family``, the
    name of its family in :class:`FileInfo`.

    Args:
        sizes: The architecture.
        img_size: See :class:`mmitpn.FastITPN`, as the others.
        in_channels: Channels of the images.
        out_indices: Maps to return.
        out_blocks: Blocks of the main stage whose outputs are returned too.
        drop_path_rate: Stochastic depth of the last block.
        with_cp: Recompute every block in the backward pass.
        frozen_stages: What is not trained.
        weight_init: See :func:`initialize_weights`.
        pos_embed_init: See :class:`mmitpn.FastITPN`.
        init_cfg: See :class:`PretrainedModule`.

    Attributes:
        strides: Of every map that is returned.
        out_channels: Channels of every map that is returned.
        drop_path_rates: Of every block, in the order they run.
        grid: Height and width in tokens that ``pos_embed`` is learned for.
        file_relative: Kind and window of the relative positions in the file of ``init_cfg``; None and 0 without them.
    """

    sub_ln = False  # whether the feed-forward networks have a LayerNorm inside, which their initialization respects

    def __init__(
        self,
        sizes: Arch,
        *,
        img_size: int | None,
        in_channels: int,
        out_indices: Sequence[int],
        out_blocks: Sequence[int],
        drop_path_rate: float,
        with_cp: bool,
        frozen_stages: int,
        weight_init: str,
        init_cfg: Mapping | None,
        pos_embed_init: str = 'trunc_normal',
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        out_blocks = check_blocks(out_blocks, sizes.depths[2], 'out_blocks')
        if img_size is not None and (not isinstance(img_size, int) or img_size < 16 or img_size % 16):
            raise ValueError(
                f'img_size is {img_size!r}; give the side of the square image in pixels, a multiple of 16, or None for'
                ' that of the pre-training file'
            )
        if (not out_indices and not out_blocks) or any(index not in (0, 1, 2) for index in out_indices):
            raise ValueError(
                f'out_indices are {tuple(out_indices)}; allowed: some of 0, 1, 2 (strides 4, 8, 16), or none of them'
                ' where out_blocks are returned'
            )
        if list(out_indices) != sorted(set(out_indices)):
            raise ValueError(f'out_indices are {tuple(out_indices)}; give them ascending and each once')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate is {drop_path_rate!r}; allowed: 0 up to, but not including, 1')
        if frozen_stages not in (-1, 0, 1, 2, 3):
            raise ValueError(f'frozen_stages is {frozen_stages!r}; allowed: -1 (none), 0, 1, 2, 3 (all)')

        self.arch = asdict(sizes)
        self.depths = sizes.depths
        stages = (*out_indices, *(2 for _ in out_blocks))
        self.strides = tuple(STRIDES[stage] for stage in stages)
        self.out_channels = tuple(sizes.channels[stage] for stage in stages)
        self.in_channels = in_channels
        self.out_indices = tuple(out_indices)
        self.out_blocks = out_blocks
        self.last_stage = max(stages)
        self.last_block = sizes.depths[2] - 1 if 2 in out_indices else max(out_blocks, default=-1)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.weight_init = check_weight_init(weight_init)
        self.pos_embed_init = check_pos_embed_init(pos_embed_init)
        total = sum(sizes.depths)
        self.drop_path_rates = [drop_path_rate * index / max(total - 1, 1) for index in range(total)]

        self.img_size = img_size
        # Read now, and not with the weights: optimizers, averaged models and distributed wrappers need the shapes.
        file = self._file_info() if img_size is None else None
        side = (img_size or DEFAULT_IMG_SIZE) // STRIDES[-1]
        self.grid = (side, side) if file is None or file.grid is None else file.grid
        self.file_relative = (None, 0) if file is None else (file.relative_position, file.relative_window)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], sizes.embed_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps.

        Args:
            x: Normalized images ``(B, in_channels, H, W)``, floating point, of any size from 1x1. Their values are not
                looked at: on a GPU that would wait for the device at every call. A NaN goes through to the loss, where
                :class:`mmitpn.engine.StopOnInvalidLossHook` stops the training run before it reaches the weights.

        Returns:
            For each of ``out_indices`` a map ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` with stride s_i = 4, 8, 16,
            then for each of ``out_blocks`` one with stride 16.

        Raises:
            TypeError: If ``x`` is not a floating-point tensor.
            ValueError: If ``x`` has another shape.
        """
        check_images(x, self.in_channels)
        self._remind_of_init_cfg()
        height, width = plain_sizes(x.shape[-2:])
        x = self.patch_embed(pad_to_multiple(x, STRIDES[-1]))
        maps = self.forward_stages(x)
        maps = [maps[i] for i in self.out_indices] + maps[len(maps) - len(self.out_blocks) :]
        return tuple(crop_to_image(x, height, width, self.strides[i]) for i, x in enumerate(maps))

    def forward_stages(
        self, x: Tensor, pos_embed: Tensor | None = None, *, mask_tokens: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Run the stages on embedded patches, up to the last one whose map is returned.

        Args:
            x: What ``patch_embed`` gives, ``(B, H / 4, W / 4, C / 4)``, with sides that 4 divides.
            pos_embed: Position embedding of the main stage, ``(B or 1, H / 16, W / 16, C)``, for patches that are not
                the cells of one image; None: that of the grid.
            mask_tokens: Changes the main stage's tokens before the position embedding: pre-training masks some there.

        Returns:
            The maps of the stages that were run, channels last, ``(B, H / s, W / s, C_i)`` with stride s = 4, 8, 16
            (the one of stride 16 only if 2 is in ``out_indices``); then those of ``out_blocks``.
        """
        maps = [run_blocks(self.stage1, x, recompute=self.with_cp)]  # B, H / 4, W / 4, C / 4
        if self.last_stage >= 1:
            maps.append(run_blocks(self.stage2, self.merge1(maps[0]), recompute=self.with_cp))  # B, H / 8, W / 8, C / 2
        if self.last_stage >= 2:
            x = self.merge2(maps[1])  # B, H / 16, W / 16, C
            if mask_tokens is not None:
                x = mask_tokens(x)
            maps += self.forward_main(self.add_positions(x, pos_embed))
        return maps

    def add_positions(self, x: Tensor, pos_embed: Tensor | None = None) -> Tensor:
        """Tokens ``(B, H / 16, W / 16, C)`` with a position embedding; None: the learned one, resized to their grid."""
        if pos_embed is None:
            grid = x.shape[1:3]
            pos_embed = resample_abs_pos_embed(self.pos_embed, self.grid, grid).view(1, *grid, -1)
        return x + pos_embed.to(x.dtype)

    def forward_main(self, x: Tensor) -> list[Tensor]:
        """The main stage on tokens with positions: the normed output, if it is returned, then ``out_blocks``'."""
        outs = self.forward_blocks(x, self.out_blocks)
        return [self.norm(outs[-1]), *outs[:-1]] if 2 in self.out_indices else outs[:-1]

    def forward_blocks(self, x: Tensor, out_blocks: Sequence[int] = ()) -> list[Tensor]:
        """The blocks of the main stage up to ``last_block``.

        Args:
            x: Their input, ``(B, H / 16, W / 16, C)``.
            out_blocks: Blocks whose output is wanted, ascending.

        Returns:
            The outputs of ``out_blocks``, then that of the last block that is run, each of the shape of ``x``.
        """
        outs = []
        for i, block in zip(range(self.last_block + 1), self.blocks, strict=False):
            x = maybe_checkpoint(block, x, recompute=self.with_cp)
            if i in out_blocks:
                outs.append(x)
        return [*outs, x]

    # --- training --------------------------------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Give every parameter its starting value."""
        initialize_weights(self, weight_init=self.weight_init, sub_ln_depth=self.depths[2] if self.sub_ln else None)
        if self.pos_embed_init == 'sincos':
            with torch.no_grad():
                self.pos_embed.copy_(sincos_pos_embed(self.grid, self.pos_embed.shape[-1]))
        else:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def freeze(self) -> None:
        """Freeze what ``frozen_stages`` says, and what comes after the last map that is returned, which is not run."""
        parts: list[nn.Module | nn.Parameter] = []
        if self.frozen_stages >= 0:
            parts += [self.patch_embed, self.pos_embed]
        if self.frozen_stages >= 1:
            parts += [self.stage1, self.merge1]
        if self.frozen_stages >= 2:
            parts += [self.stage2, self.merge2]
        if self.frozen_stages >= 3 or self.last_stage < 2:
            parts += [self.blocks, self.norm, self.pos_embed]
        if 2 not in self.out_indices:
            parts += [*self.blocks[self.last_block + 1 :], self.norm]
        if self.last_stage < 2:
            parts.append(self.merge2)
        if self.last_stage < 1:
            parts += [self.merge1, self.stage2]
        for part in parts:
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def train(self, mode: bool = True) -> BaseITPN:
        """Switch the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self.freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        The embeddings are layer 0; then every block and every merge counts one, in the order they run, as in the
        authors' flat list; what follows the last block (``norm``) is the last layer, at the head's own rate.

        Args:
            param_name: Name of the parameter in the model.
            prefix: What precedes this backbone's own names, such as ``'backbone.'``.

        Returns:
            ``(layer, number of layers)``; a usual scale is ``decay ** (number of layers - 1 - layer)``. A name without
            the prefix, such as that of a head, belongs to the last layer, as in mmpretrain's backbones.

        Raises:
            ValueError: If the name has the prefix, and no such parameter is in the backbone.
        """
        first, second, main = self.depths
        starts = {'stage1': 1, 'merge1': 1 + first, 'stage2': 2 + first, 'merge2': 2 + first + second}
        starts['blocks'] = 3 + first + second
        num_layers = starts['blocks'] + main + 1
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        part, *rest = param_name[len(prefix) :].split('.')
        if part in ('patch_embed', 'pos_embed'):
            return 0, num_layers
        if part == 'norm':
            return num_layers - 1, num_layers
        if part not in starts:
            raise ValueError(f'{param_name!r} is not a parameter of this backbone (prefix {prefix!r})')
        return starts[part] + (0 if part.startswith('merge') else int(rest[0])), num_layers

    # --- what a file of weights decides: sizes and positions, see StateDictAdapter -----------------------------------

    def fit_weight(self, name: str, shape: Sequence[int]) -> WeightFit | None:
        """See :class:`StateDictAdapter`: the position embedding of any square grid is taken."""
        if name != 'pos_embed' or len(shape) != 3 or shape[::2] != self.pos_embed.shape[::2]:
            return None
        side = isqrt(shape[1])
        if not side or side * side != shape[1]:
            return None
        return WeightFit(side, self.grid[0], f'img_size={side * STRIDES[-1]}', adopted=self.img_size is None)

    def adopt_weight(self, name: str, fit: WeightFit) -> None:
        """See :class:`StateDictAdapter`."""
        del name
        self.grid = (fit.source, fit.source)

    def adapt_weight(self, name: str, value: Tensor, fit: WeightFit) -> Tensor:
        """See :class:`StateDictAdapter`: ``(1, source * source, C)`` to ``(1, N, C)`` of this module."""
        del name
        return resample_abs_pos_embed(value, (fit.source, fit.source), self.grid)

    @classmethod
    def _settings_of(cls, info: FileInfo, given: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`PretrainedModule`: architecture, layer scale and, unless given, input channels of a file.

        Raises:
            ValueError: If the file is of the other family, has no backbone, or one of another size than ``given``.
        """
        if info.family and info.family != cls.family:
            other = 'FastITPN' if info.family == FastITPN.family else 'ITPN'
            raise ValueError(f'it is {info.description}, of the family {info.family}: use {other}.from_pretrained')
        if info.arch is None:
            raise ValueError(f'there is no backbone in it, or it is cut off: it is {info.description}')
        sizes = {name: getattr(info.arch, name) for name in _FIELDS}
        if 'arch' in given:
            wanted = resolve_arch(given['arch'])
            if (wanted.depths, wanted.embed_dim) != (info.arch.depths, info.arch.embed_dim):
                raise ValueError(
                    f'it holds {info.arch}, but arch={given["arch"]!r} asks for {"/".join(map(str, wanted.depths))}'
                    f' blocks, {wanted.embed_dim} channels: leave arch out, or give a file of that size'
                )
        return {
            'arch': info.arch.name or sizes,
            'layer_scale_init_value': 0.1 if info.layer_scale else None,
            'in_channels': info.in_channels or 3,
        }


MLP_RATIO = 3  # hidden channels of every feed-forward network, in units of its channels


@MODELS.register_module()
class FastITPN(BaseITPN):
    """Backbone of Fast-iTPN (arXiv 2211.12735), exact to the released weights.

    The outputs are those that the pre-trained pyramid (:class:`mmitpn.ITPNPyramid`) and mmdet's or mmseg's necks take:
    stages 1 and 2 just before their merges, and the main stage after its final norm. They are in
    ``torch.channels_last`` memory order. Sizes and layout are read off the released code and weights;
    ``frozen_stages``, checkpointing and the treatment of sizes that 16 does not divide are ours.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'`` (published), ``'nano'`` (ours), or a dict of ``depths``,
            ``embed_dim``, ``num_heads``.
        img_size: Side in pixels of the square image that the position embedding is learned for, a multiple of 16. None
            (default): that of the file that is loaded, so that its outputs at that size are those of the authors'
            network; 224 without a file. A number: the embedding of a file of another size is resized once, when it is
            loaded, as in the authors' fine-tuning. Images of any other size are welcome either way: the embedding is
            resized for them in every forward pass.
        in_channels: Channels of the images: 3 for RGB, 6 for RGB beside depth, thermal or event images.
        in_channels_init: How the first layer's weights of a file for another number S of channels are adapted when they
            are loaded, in any way of loading. ``'repeat'``: repeated in turn and scaled by S / in_channels, so that the
            output keeps its magnitude; ``'repeat_unscaled'``: repeated in turn as they are; ``'copy'``: the first S
            channels as they are and the others zero, so that the output is at first that of the RGB network; None: such
            a file is an error. A file for more channels is an error, unless it is for RGB.
        out_indices: Which of the maps at strides 4, 8, 16 to return, ascending. Stages after the last one are not run
            and not trained. It may be empty if there are ``out_blocks``.
        out_blocks: Blocks of the main stage whose outputs are returned too, after the maps of ``out_indices``: indices
            from 0, or from -1 backwards, ascending. They are not normed, and tokens that migration dropped are back in
            them. Without 2 in ``out_indices``, blocks after the last one are not run and not trained.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over all blocks.
        layer_scale_init_value: Initial layer scale of the main stage; None leaves the parameters out.
        with_cp: Recompute every block in the backward pass instead of keeping its activations.
        frozen_stages: -1 trains everything, 0 freezes the patch and position embeddings, 1 and 2 also the stages at
            stride 4 and 8 with the merges after them, 3 the whole backbone.
        final_norm: Whether the stride-16 map is normed. The authors' classifiers pool first and norm then
            (``fc_norm``): there the classification head has it.
        weight_init: ``'trunc_normal'`` or ``'xavier'``, see :func:`initialize_weights`; the latter is to learn from
            nothing.
        pos_embed_init: How the position embedding starts, which is trained in either case: ``'trunc_normal'``, with
            standard deviation 0.02 as the authors', or ``'sincos'``, sines and cosines of amplitude 1. With the former
            masked tokens of a new network are nearly equal, and pre-training first has to learn positions.
        token_migration: Work with fewer tokens from some block of the main stage on, and with all again for the
            pyramid: the arguments of :class:`TokenMigration`, ``dict(keep_ratio=0.5, at=None, score=...)``; ``type``
            names another registered method. ``dict()`` takes the defaults, None leaves it out.
        token_gathering: Attention in windows, with gathering tokens between them: the arguments of
            :class:`TokenGathering`, ``dict(window_size=16, num_tokens=4, global_blocks=(), pool='mean')``.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads any Fast-iTPN file as it is.

    Raises:
        ValueError: If an argument is outside what is allowed; the message says what is.
    """

    family = 'Fast-iTPN'
    sub_ln = True

    def __init__(
        self,
        arch: str | Mapping = 'base',
        *,
        img_size: int | None = None,
        in_channels: int = 3,
        in_channels_init: str | None = 'repeat',
        out_indices: Sequence[int] = (0, 1, 2),
        out_blocks: Sequence[int] = (),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float | None = 0.1,
        with_cp: bool = False,
        frozen_stages: int = -1,
        final_norm: bool = True,
        weight_init: str = 'trunc_normal',
        pos_embed_init: str = 'trunc_normal',
        token_migration: Mapping | None = None,
        token_gathering: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        sizes = resolve_arch(arch)
        super().__init__(
            sizes,
            img_size=img_size,
            in_channels=in_channels,
            out_indices=out_indices,
            out_blocks=out_blocks,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            weight_init=weight_init,
            pos_embed_init=pos_embed_init,
            init_cfg=init_cfg,
        )
        fine, middle, main = sizes.channels
        rates = iter(self.drop_path_rates)

        def stage(dim: int, depth: int) -> nn.ModuleList:
            blocks = (PointwiseBlock(dim, MLP_RATIO * dim, sub_norm=True, drop_path=next(rates)) for _ in range(depth))
            return nn.ModuleList(blocks)

        def main_block() -> TransformerBlock:
            attention, mlp = WindowedAttention(main, sizes.num_heads), SwiGLU(main, MLP_RATIO * main)
            return TransformerBlock(main, attention, mlp, layer_scale=layer_scale_init_value, drop_path=next(rates))

        self.patch_embed = PatchEmbed(in_channels, fine, stride=STRIDES[0], in_channels_init=in_channels_init)
        self.stage1 = stage(fine, sizes.depths[0])
        self.merge1 = ConvPatchMerging(fine)
        self.stage2 = stage(middle, sizes.depths[1])
        self.merge2 = ConvPatchMerging(middle)
        self.blocks = nn.ModuleList(main_block() for _ in range(sizes.depths[2]))
        self.norm = layer_norm(main) if final_norm else nn.Identity()
        self.reset_parameters()
        self.set_token_reduction(token_migration=token_migration, token_gathering=token_gathering)
        chunk_on_cpu(self)

    def set_token_reduction(
        self, *, token_migration: Mapping | None = None, token_gathering: Mapping | None = None
    ) -> None:
        """Set ``token_migration`` and ``token_gathering`` of a built network; without arguments, switch both off.

        Weights stay as they are; offsets that ``learned=True`` adds start at 0, and go with the setting.

        Args:
            token_migration: As in the constructor.
            token_gathering: As in the constructor.

        Raises:
            ValueError: If an argument is outside what is allowed; the message says what is.
        """
        reduction: TokenReduction | None = None
        if token_migration is not None or token_gathering is not None:
            reduction = TokenReduction(self.depths[2], migration=token_migration, gathering=token_gathering)
            reduction.train(self.training)
        self.token_reduction = reduction
        gathering = None if reduction is None else reduction.gathering
        for index, block in enumerate(self.blocks):
            learned = gathering is not None and index in gathering.learned_blocks
            block.attn.set_gathering_offset(gathering.num_tokens if learned else 0)
        self.freeze()

    def forward_blocks(self, x: Tensor, out_blocks: Sequence[int] = ()) -> list[Tensor]:
        """See :class:`BaseITPN`; with token migration and gathering, on fewer tokens and in windows."""
        if self.token_reduction is None:
            return super().forward_blocks(x, out_blocks)
        return self.token_reduction(
            self.blocks, x, last_block=self.last_block, out_blocks=out_blocks, recompute=self.with_cp
        )

    # --- several images at once, as trackers do ----------------------------------------------------------------------

    def forward_tokens(self, images: Sequence[Tensor]) -> list[Tensor] | list[tuple[Tensor, ...]]:
        """Compute several images with one joint main stage: the tokens of each attend to those of all.

        A tracker gives its template and its search region. Each image goes through stem and stages by itself, with the
        position embedding of its own grid; then the tokens of all are concatenated in the order given. One image alone
        gives what :meth:`forward` gives. Under FSDP register this method by
        ``torch.distributed.fsdp.register_fsdp_forward_method``.

        Args:
            images: Normalized images ``(B, in_channels, H_i, W_i)``, each of any size, all of the same B.

        Returns:
            For each image, in the same order, the map at stride 16 ``(B, C, ceil(H_i / 16), ceil(W_i / 16))``; with
            ``out_blocks`` a tuple of it (if 2 is in ``out_indices``) and the map of each of those blocks.

        Raises:
            TypeError: If ``images`` is no list, or an image no floating-point tensor.
            ValueError: If there is no image, one has another shape, the batch sizes differ, the main stage is not run
                because of ``out_indices``, or it has token migration or gathering, which work on the grid of one image.
        """
        self._check_joint(images, 'images')
        return self.forward_joint([self.embed_tokens(image) for image in images])

    def embed_tokens(self, image: Tensor, pos_embed: Tensor | None = None) -> Tensor:
        """The first half of :meth:`forward_tokens`: stem, stages and position embedding of one image.

        Args:
            image: ``(B, in_channels, H, W)``.
            pos_embed: Position embedding in place of the learned one, ``(B or 1, ceil(H / 16), ceil(W / 16), C)``.

        Returns:
            Tokens of the main stage, ``(B, ceil(H / 16), ceil(W / 16), C)``.
        """
        check_images(image, self.in_channels)
        self._remind_of_init_cfg()
        x = run_blocks(self.stage1, self.patch_embed(pad_to_multiple(image, STRIDES[-1])), recompute=self.with_cp)
        x = run_blocks(self.stage2, self.merge1(x), recompute=self.with_cp)
        return self.add_positions(self.merge2(x), pos_embed)

    def forward_joint(self, tokens: Sequence[Tensor]) -> list[Tensor] | list[tuple[Tensor, ...]]:
        """The second half of :meth:`forward_tokens`: one main stage over several grids of tokens.

        Args:
            tokens: Of each image ``(B, h_i, w_i, C)``, see :meth:`embed_tokens`, with whatever a tracker adds to them;
                K further tokens, such as a class token or those of a text, are a grid ``(B, 1, K, C)``.

        Returns:
            For each grid the map ``(B, C, h_i, w_i)``; with ``out_blocks`` a tuple, see :meth:`forward_tokens`.
        """
        self._check_joint(tokens, 'tokens')
        batches = [len(x) for x in tokens]
        if len(set(batches)) > 1:
            raise ValueError(f'the batch sizes are {batches}; give the same number of samples of every image')
        grids = [plain_sizes(x.shape[1:3]) for x in tokens]
        x = torch.cat([x.flatten(1, 2) for x in tokens], 1)  # B, N, C
        counts = [height * width for height, width in grids]
        parts = [out.split(counts, 1) for out in self.forward_main(x)]
        maps = [
            tuple(nhwc_to_nchw(part[i].contiguous().unflatten(1, grid)) for part in parts)
            for i, grid in enumerate(grids)
        ]
        return maps if self.out_blocks else [one for (one,) in maps]

    def _check_joint(self, given: Sequence[Tensor], what: str) -> None:
        if not isinstance(given, list | tuple):
            raise TypeError(f'{what} is a {type(given).__name__}; give a list, such as [template, search]')
        if not given:
            raise ValueError(f'{what} is an empty list; give at least one, such as [template, search]')
        if self.last_stage < 2:
            raise ValueError(
                f'the main stage is not run: out_indices are {self.out_indices}; add 2 to them, or set out_blocks'
            )
        if self.token_reduction is not None:
            raise ValueError(
                'token migration and gathering work on the grid of one image, and here are several: switch them off by'
                ' set_token_reduction()'
            )
