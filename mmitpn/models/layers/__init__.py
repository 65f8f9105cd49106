"""What every network of the family is made of. Maps are channels-last, ``(B, H, W, C)``, throughout."""

from .attention import RELATIVE_POSITIONS, Attention, RelativeAttention
from .blocks import (
    WEIGHT_INITS,
    LayerNorm,
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
    IN_CHANNELS_INITS,
    ConvPatchMerging,
    PatchEmbed,
    PatchMerging,
    PatchSplit,
    is_dynamic,
    nchw_to_nhwc,
    nhwc_to_nchw,
    plain_sizes,
)
from .pos_embed import (
    resample_abs_pos_embed,
    resample_rel_pos,
    resample_rel_pos_table,
)
from .state_dict_adapter import StateDictAdapter, WeightFit

__all__ = [
    'IN_CHANNELS_INITS',
    'RELATIVE_POSITIONS',
    'WEIGHT_INITS',
    'Attention',
    'ConvPatchMerging',
    'LayerNorm',
    'Mlp',
    'NormLayer',
    'PatchEmbed',
    'PatchMerging',
    'PatchSplit',
    'PointwiseBlock',
    'RelativeAttention',
    'StateDictAdapter',
    'SwiGLU',
    'TransformerBlock',
    'WeightFit',
    'check_weight_init',
    'initialize_weights',
    'is_dynamic',
    'layer_norm',
    'maybe_checkpoint',
    'nchw_to_nhwc',
    'nhwc_to_nchw',
    'plain_sizes',
    'resample_abs_pos_embed',
    'resample_rel_pos',
    'resample_rel_pos_table',
    'run_blocks',
]
