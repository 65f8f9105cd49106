"""What every network of the family is made of. Maps are channels-last, ``(B, H, W, C)``, throughout."""

from .attention import Attention
from .blocks import PointwiseBlock, TransformerBlock, run_block, run_blocks
from .initialize import WEIGHT_INITS, initialize_weights
from .mlp import Mlp, SwiGLU
from .norm import EPS_ITPN, layer_norm, set_norm_eps
from .parts import run_in_bands
from .patch import PatchConcatMerge, PatchEmbed, PatchMerge, PatchSplit, as_map, as_tokens, pad_to_multiple
from .position import LearnedPositions, PositionFit, resize_position_embedding
from .relative import RELATIVE_POSITIONS, RelativeAttention, resize_table

__all__ = [
    'EPS_ITPN',
    'RELATIVE_POSITIONS',
    'WEIGHT_INITS',
    'Attention',
    'LearnedPositions',
    'Mlp',
    'PatchConcatMerge',
    'PatchEmbed',
    'PatchMerge',
    'PatchSplit',
    'PointwiseBlock',
    'PositionFit',
    'RelativeAttention',
    'SwiGLU',
    'TransformerBlock',
    'as_map',
    'as_tokens',
    'initialize_weights',
    'layer_norm',
    'pad_to_multiple',
    'resize_position_embedding',
    'resize_table',
    'run_block',
    'run_blocks',
    'run_in_bands',
    'set_norm_eps',
]
