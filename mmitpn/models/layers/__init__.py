"""What every network of the family is made of. Maps are channels-last, ``(B, H, W, C)``, throughout."""

from .attention import RELATIVE_POSITIONS, Attention, RelativeAttention
from .blocks import (
    WEIGHT_INITS,
    Mlp,
    NormLayer,
    PointwiseBlock,
    SwiGLU,
    TransformerBlock,
    check_weight_init,
    initialize_weights,
    layer_norm,
    maybe_checkpoint,
    run_blocks,
)
from .patch import (
    ConvPatchMerging,
    PatchEmbed,
    PatchMerging,
    PatchSplit,
    nchw_to_nhwc,
    nhwc_to_nchw,
)
from .pos_embed import (
    LearnedPositions,
    PositionFit,
    resample_abs_pos_embed,
    resample_rel_pos,
    resample_rel_pos_table,
)

__all__ = [
    'RELATIVE_POSITIONS',
    'WEIGHT_INITS',
    'Attention',
    'ConvPatchMerging',
    'LearnedPositions',
    'Mlp',
    'NormLayer',
    'PatchEmbed',
    'PatchMerging',
    'PatchSplit',
    'PointwiseBlock',
    'PositionFit',
    'RelativeAttention',
    'SwiGLU',
    'TransformerBlock',
    'check_weight_init',
    'initialize_weights',
    'layer_norm',
    'maybe_checkpoint',
    'nchw_to_nhwc',
    'nhwc_to_nchw',
    'resample_abs_pos_embed',
    'resample_rel_pos',
    'resample_rel_pos_table',
    'run_blocks',
]
