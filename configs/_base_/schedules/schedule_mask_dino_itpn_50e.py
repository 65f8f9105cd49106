# MaskDINO's schedule with the layer-wise learning-rate decay of iTPN's detectors in place of a tenth of the rate for
# the whole backbone: a reconstruction.
_base_ = './schedule_mask_dino_50e.py'

no_decay = _base_.no_decay
optim_wrapper = dict(
    constructor='mmitpn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        _delete_=True,
        decay_rate=0.9,
        custom_keys=dict(level_embed=no_decay, label_embed=no_decay, query_content=no_decay, query_boxes=no_decay),
    ),
)
