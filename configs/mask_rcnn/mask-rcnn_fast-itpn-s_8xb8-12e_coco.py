# Reconstruction: iTPN's 1x recipe on Fast-iTPN.
_base_ = './mask-rcnn_fast-itpn-b_8xb8-12e_coco.py'

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=_base_.channels.small))
