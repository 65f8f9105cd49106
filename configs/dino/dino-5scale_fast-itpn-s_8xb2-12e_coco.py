# As the 4 scale config, with stride 64 as a fifth level.
_base_ = './dino-4scale_fast-itpn-s_8xb2-12e_coco.py'

model = dict(
    num_feature_levels=5,
    neck=dict(num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
