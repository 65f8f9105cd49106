# Reconstruction: the paper's DINO configs are unpublished. The strides 4, 8, 16, 32 come from the pre-trained pyramid.
_base_ = './dino-4scale_fast-itpn-t_8xb2-12e_coco.py'

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, with_cp=True), neck=dict(in_channels=_base_.channels.large)
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
