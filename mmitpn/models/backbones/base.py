"""What the backbones of the family share: two attention-free stages, a transformer at stride 16, three maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from mmitpn.checkpoint import FileInfo, PretrainedModule
from mmitpn.checkpoint.formats import ITPN

from ..layers import (
    LearnedPositions,
    PositionFit,
    as_map,
    initialize_weights,
    pad_to_multiple,
    resize_position_embedding,
    run_blocks,
)
from ..layers.initialize import check_weight_init
from .archs import Arch, resolve_arch
from .inputs import check_images

STRIDES = (4, 8, 16)
DEFAULT_IMG_SIZE = 224  # where neither a setting nor a file says another


class HierarchicalBackbone(LearnedPositions, PretrainedModule):
    """Stem, two pointwise stages with merges after them, and a main stage; subclasses say what they are made of.

    A subclass defines ``_stem``, ``_stage_block``, ``_merge``, ``_main_block`` and ``_final_norm``, each called once or
    once a block while this constructor runs. Its arguments are those of :class:`mmitpn.FastITPN`.
    """

    sub_ln = False  # whether the feed-forward networks have a LayerNorm inside, which their initialisation respects

    def __init__(
        self,
        arch: str | Mapping,
        *,
        img_size: int | None,
        out_indices: Sequence[int],
        drop_path_rate: float,
        with_cp: bool,
        frozen_stages: int,
        weight_init: str,
        init_cfg: Mapping | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        sizes = resolve_arch(arch)
        if img_size is not None and (not isinstance(img_size, int) or img_size < 16 or img_size % 16):
            raise ValueError(
                f'img_size is {img_size!r}; give the side of the square image in pixels, a multiple of 16, or None for'
                ' that of the pre-training file'
            )
        if not out_indices or any(index not in (0, 1, 2) for index in out_indices):
            raise ValueError(f'out_indices are {tuple(out_indices)}; allowed: some of 0, 1, 2 (strides 4, 8, 16)')
        if list(out_indices) != sorted(set(out_indices)):
            raise ValueError(f'out_indices are {tuple(out_indices)}; give them ascending and each once')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate is {drop_path_rate!r}; allowed: 0 up to, but not including, 1')
        if frozen_stages not in (-1, 0, 1, 2, 3):
            raise ValueError(f'frozen_stages is {frozen_stages!r}; allowed: -1 (none), 0, 1, 2, 3 (all)')

        self.arch = asdict(sizes)
        self.depths = sizes.depths
        self.strides = tuple(STRIDES[i] for i in out_indices)
        self.out_channels = tuple(sizes.channels[i] for i in out_indices)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.weight_init = check_weight_init(weight_init)

        total = sum(sizes.depths)
        rates = iter([drop_path_rate * index / max(total - 1, 1) for index in range(total)])
        fine, middle, main = sizes.channels
        self.patch_embed = self._stem(fine)
        self.stage1 = self._stage(fine, sizes.depths[0], rates)
        self.merge1 = self._merge(fine)
        self.stage2 = self._stage(middle, sizes.depths[1], rates)
        self.merge2 = self._merge(middle)
        self.img_size = img_size
        # Read now, and not with the weights: optimizers, averaged models and distributed wrappers need the shapes.
        file = self._file_info() if img_size is None else None
        side = (img_size or DEFAULT_IMG_SIZE) // STRIDES[2]
        self.grid = (side, side) if file is None or file.grid is None else file.grid
        self._file_window = self._window_of(file)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], main))
        self.blocks = nn.ModuleList(self._main_block(sizes, next(rates)) for _ in range(sizes.depths[2]))
        self.norm = self._final_norm(main)
        self.reset_parameters()
        self._freeze()

    # --- what a subclass is made of --------------------------------------------------------------------------------

    def _stem(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def _stage_block(self, dim: int, drop_path: float) -> nn.Module:
        raise NotImplementedError

    def _merge(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def _main_block(self, sizes: Arch, drop_path: float) -> nn.Module:
        raise NotImplementedError

    def _final_norm(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def _stage(self, dim: int, depth: int, rates: Iterator[float]) -> nn.ModuleList:
        return nn.ModuleList(self._stage_block(dim, next(rates)) for _ in range(depth))

    def reset_parameters(self) -> None:
        """Give every parameter its starting value."""
        initialize_weights(self, weight_init=self.weight_init, sub_ln_depth=self.depths[2] if self.sub_ln else None)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    # --- positions of a file -------------------------------------------------------------------------------------

    def _window_of(self, file: FileInfo | None) -> int | None:
        """Side in tokens of the grid that the file's relative positions are for, where the module can take them."""
        del file
        return None

    def fit_positions(self, name: str, shape: Sequence[int]) -> PositionFit | None:
        """See :class:`LearnedPositions`: the position embedding of any square grid is taken."""
        if name != 'pos_embed' or len(shape) != 3 or shape[::2] != self.pos_embed.shape[::2]:
            return None
        side = isqrt(shape[1])
        if not side or side * side != shape[1]:
            return None
        return PositionFit(self.img_size is None, side, self.grid[0])

    def adopt_grid(self, name: str, side: int) -> None:
        """See :class:`LearnedPositions`."""
        del name
        self.grid = (side, side)

    def resize_positions(self, name: str, value: Tensor, side: int) -> Tensor:
        """See :class:`LearnedPositions`: ``(1, side * side, C)`` to ``(1, N, C)`` of this module."""
        del name
        return resize_position_embedding(value, (side, side), self.grid)

    def position_setting(self, side: int) -> str:
        """See :class:`LearnedPositions`."""
        return f'img_size={side * STRIDES[2]}'

    @classmethod
    def _settings_of(cls, info: FileInfo, given: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`PretrainedModule`: arch and layer scale of a file."""
        if info.family and info.family != cls.family:
            other = 'ITPN' if info.family == ITPN else 'FastITPN'
            raise ValueError(f'it is {info.description}, of the family {info.family}: use {other}.from_pretrained')
        if info.arch is None:
            raise ValueError(f'there is no backbone in it, or it is cut off: it is {info.description}')
        sizes = {name: getattr(info.arch, name) for name in ('depths', 'embed_dim', 'num_heads')}
        if 'arch' in given:
            wanted = resolve_arch(given['arch'])
            if (wanted.depths, wanted.embed_dim) != (info.arch.depths, info.arch.embed_dim):
                raise ValueError(
                    f'it holds {info.arch}, but arch={given["arch"]!r} asks for {"/".join(map(str, wanted.depths))}'
                    f' blocks, {wanted.embed_dim} channels: leave arch out, or give a file of that size'
                )
        return {'arch': info.arch.name or sizes, 'layer_scale_init_value': 0.1 if info.layer_scale else None}

    # --- forward -----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps.

        Args:
            x: Normalized images ``(B, 3, H, W)``, floating point, of any size from 1x1. Their values are not looked at:
                on a GPU that would wait for the device at every call. A NaN goes through to the loss, where
                :class:`mmitpn.engine.StopOnInvalidLossHook` stops the training run before it reaches the weights.

        Returns:
            For each of ``out_indices`` a map ``(B, C_i, ceil(H / s_i), ceil(W / s_i))`` with stride s_i = 4, 8, 16.

        Raises:
            TypeError: If ``x`` is not a floating-point tensor.
            ValueError: If ``x`` has another shape.
        """
        check_images(x)
        self._remind_of_init_cfg()
        height, width = map(int, x.shape[-2:])  # numbers also where a tracer gives tensors
        maps = self.maps_of(self.patch_embed(pad_to_multiple(x, STRIDES[2])))  # from B, H / 4, W / 4, C / 4
        sides = {i: (-(-height // STRIDES[i]), -(-width // STRIDES[i])) for i in self.out_indices}
        # What was padded is cut; the copy that this takes then keeps the maps dense, as hosts that view them expect.
        return tuple(as_map(maps[i][:, : sides[i][0], : sides[i][1]].contiguous()) for i in self.out_indices)

    def maps_of(
        self, x: Tensor, position: Tensor | None = None, *, replace: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """The stages' maps of embedded patches, channels last, up to the last of ``out_indices``.

        Args:
            x: What ``patch_embed`` gives, ``(B, H / 4, W / 4, C / 4)``, with sides that 4 divides.
            position: Position embedding of the main stage, ``(B or 1, H / 16, W / 16, C)``, for patches that are not
                the cells of one picture; None: that of the grid.
            replace: Changes the main stage's tokens before they are given positions: pre-training masks some there.
        """
        maps = [run_blocks(self.stage1, x, recompute=self.with_cp)]
        if self.out_indices[-1] >= 1:
            maps.append(run_blocks(self.stage2, self.merge1(maps[0]), recompute=self.with_cp))
        if self.out_indices[-1] >= 2:
            tokens = self.merge2(maps[1])
            maps.append(self._main_stage(tokens if replace is None else replace(tokens), position))
        return maps

    def position_of(self, height: int, width: int) -> Tensor:
        """Position embedding of a grid of tokens, ``(1, height, width, C)``."""
        return resize_position_embedding(self.pos_embed, self.grid, (height, width)).view(1, height, width, -1)

    def _main_stage(self, x: Tensor, position: Tensor | None) -> Tensor:
        """The transformer on ``(B, H / 16, W / 16, C)``, position embedding and final norm included."""
        position = self.position_of(*x.shape[1:3]) if position is None else position
        return self.norm(self._run_main_blocks(x + position.to(x.dtype)))

    def _run_main_blocks(self, x: Tensor) -> Tensor:
        return run_blocks(self.blocks, x, recompute=self.with_cp)

    # --- training ----------------------------------------------------------------------------------------------

    def _freeze(self) -> None:
        parts: list[nn.Module | nn.Parameter] = []
        if self.frozen_stages >= 0:
            parts += [self.patch_embed, self.pos_embed]
        if self.frozen_stages >= 1:
            parts += [self.stage1, self.merge1]
        if self.frozen_stages >= 2:
            parts += [self.stage2, self.merge2]
        if self.frozen_stages >= 3 or self.out_indices[-1] < 2:
            parts += [self.blocks, self.norm, self.pos_embed]
        if self.out_indices[-1] < 2:
            parts.append(self.merge2)
        if self.out_indices[-1] < 1:
            parts += [self.merge1, self.stage2]
        for part in parts:
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def train(self, mode: bool = True) -> HierarchicalBackbone:
        """Switch the mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        The embeddings are layer 0; then every block and every merge counts one, in the order they run, as in the
        authors' flat list; what follows the last block (``norm``) is the last layer, at the head's own rate.

        Args:
            param_name: Name of the parameter in the model.
            prefix: What precedes this backbone's own names, such as ``'backbone.'``.

        Returns:
            ``(layer, number of layers)``; a usual scale is ``decay ** (number of layers - 1 - layer)``.

        Raises:
            ValueError: If no such parameter is in the backbone.
        """
        if not param_name.startswith(prefix):
            raise ValueError(f'{param_name!r} does not start with the prefix {prefix!r} of this backbone')
        first, second, main = self.depths
        starts = {'stage1': 1, 'merge1': 1 + first, 'stage2': 2 + first, 'merge2': 2 + first + second}
        starts['blocks'] = 3 + first + second
        num_layers = starts['blocks'] + main + 1
        part, *rest = param_name[len(prefix) :].split('.')
        if part in ('patch_embed', 'pos_embed'):
            return 0, num_layers
        if part == 'norm':
            return num_layers - 1, num_layers
        if part not in starts:
            raise ValueError(f'{param_name!r} is not a parameter of this backbone (prefix {prefix!r})')
        return starts[part] + (0 if part.startswith('merge') else int(rest[0])), num_layers
