# Reconstruction: MaskDINO's published ADE20K recipe of R50, on Fast-iTPN; the paper's own is unpublished.
_base_ = './mask-dino_fast-itpn-t_8xb2-160k_ade20k-512x512.py'

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=_base_.channels.small))
