# Reconstruction: MaskDINO's published ADE20K recipe of R50, on Fast-iTPN; the paper's own is unpublished.
_base_ = './mask-dino_fast-itpn-t_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='large'), neck=dict(in_channels=_base_.channels.large))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
