"""What FastITPN and ITPN share besides their forward: arguments, positions of a file, freezing, layer depths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from mmitpn.checkpoint import PretrainedModule

from ..layers import LearnedPositions, PositionFit, check_weight_init, initialize_weights, resample_abs_pos_embed

STRIDES = (4, 8, 16)
DEFAULT_IMG_SIZE = 224  # where neither a setting nor a file says another


@dataclass(frozen=True)
class Arch:
    """Size of a network: blocks of the three stages, channels and heads of the main one."""

    depths: tuple[int, int, int]
    embed_dim: int
    num_heads: int

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels at strides 4, 8 and 16."""
        return self.embed_dim // 4, self.embed_dim // 2, self.embed_dim


class BaseITPN(LearnedPositions, PretrainedModule):
    """Base of the backbones: two stages of pointwise blocks and a main stage at stride 16.

    A subclass builds ``patch_embed``, ``stage1``, ``merge1``, ``stage2``, ``merge2``, ``blocks`` and ``norm`` after
    this constructor, and calls :meth:`reset_parameters` and :meth:`freeze` at the end of its own.

    Args:
        sizes: The architecture.
        img_size: See :class:`mmitpn.FastITPN`, as the others.
        out_indices: Maps to return.
        drop_path_rate: Stochastic depth of the last block.
        with_cp: Recompute every block in the backward pass.
        frozen_stages: What is not trained.
        weight_init: See :func:`initialize_weights`.
        init_cfg: See :class:`PretrainedModule`.

    Attributes:
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
        out_indices: Sequence[int],
        drop_path_rate: float,
        with_cp: bool,
        frozen_stages: int,
        weight_init: str,
        init_cfg: Mapping | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
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
        self.drop_path_rates = [drop_path_rate * index / max(total - 1, 1) for index in range(total)]

        self.img_size = img_size
        # Read now, and not with the weights: optimizers, averaged models and distributed wrappers need the shapes.
        file = self._file_info() if img_size is None else None
        side = (img_size or DEFAULT_IMG_SIZE) // STRIDES[-1]
        self.grid = (side, side) if file is None or file.grid is None else file.grid
        self.file_relative = (None, 0) if file is None else (file.relative_position, file.relative_window)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], sizes.embed_dim))

    def reset_parameters(self) -> None:
        """Give every parameter its starting value."""
        initialize_weights(self, weight_init=self.weight_init, sub_ln_depth=self.depths[2] if self.sub_ln else None)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    # --- positions of a file, see LearnedPositions -----------------------------------------------------------------

    def fit_positions(self, name: str, shape: Sequence[int]) -> PositionFit | None:
        """See :class:`LearnedPositions`: the position embedding of any square grid is taken."""
        if name != 'pos_embed' or len(shape) != 3 or shape[::2] != self.pos_embed.shape[::2]:
            return None
        side = isqrt(shape[1])
        if not side or side * side != shape[1]:
            return None
        return PositionFit(self.img_size is None, side, self.grid[0], f'img_size={side * STRIDES[-1]}')

    def adopt_grid(self, side: int) -> None:
        """See :class:`LearnedPositions`."""
        self.grid = (side, side)

    def resize_positions(self, name: str, value: Tensor, side: int) -> Tensor:
        """See :class:`LearnedPositions`: ``(1, side * side, C)`` to ``(1, N, C)`` of this module."""
        del name
        return resample_abs_pos_embed(value, (side, side), self.grid)

    # --- training --------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Freeze what ``frozen_stages`` says, and the stages after the last of ``out_indices``, which are not run."""
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
