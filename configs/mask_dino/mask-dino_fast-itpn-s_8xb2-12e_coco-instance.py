# Reconstruction: MaskDINO's published recipe of R50, on Fast-iTPN; the paper has no MaskDINO on COCO.
_base_ = './mask-dino_fast-itpn-t_8xb2-12e_coco-instance.py'

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=_base_.channels.small))
