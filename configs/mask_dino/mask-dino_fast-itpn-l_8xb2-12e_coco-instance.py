# Reconstruction: MaskDINO's published recipe of R50, on Fast-iTPN; the paper has no MaskDINO on COCO.
_base_ = './mask-dino_fast-itpn-t_8xb2-12e_coco-instance.py'

model = dict(backbone=dict(arch='large'), neck=dict(in_channels=_base_.channels.large))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
