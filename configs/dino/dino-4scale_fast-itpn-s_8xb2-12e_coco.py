# Reconstruction: the paper's DINO configs are unpublished. The strides 4, 8, 16, 32 come from the pre-trained pyramid.
_base_ = './dino-4scale_fast-itpn-t_8xb2-12e_coco.py'

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=_base_.channels.small))
