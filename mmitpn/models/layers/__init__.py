"""What every network of the family is made of. Maps are channels-last, ``(B, H, W, C)``, throughout."""

from .attention import Attention
from .blocks import PointwiseBlock, TransformerBlock, run_blocks
from .initialize import WEIGHT_INITS, initialize_weights
from .mlp import Mlp, SwiGLU
from .patch import PatchEmbed, PatchMerge, PatchSplit, as_map, as_tokens, pad_to_multiple
from .position import resize_position_embedding

__all__ = [
    'WEIGHT_INITS',
    'Attention',
    'Mlp',
    'PatchEmbed',
    'PatchMerge',
    'PatchSplit',
    'PointwiseBlock',
    'SwiGLU',
    'TransformerBlock',
    'as_map',
    'as_tokens',
    'initialize_weights',
    'pad_to_multiple',
    'resize_position_embedding',
    'run_blocks',
]
