# Reconstruction: iTPN's 1x recipe on Fast-iTPN.
_base_ = './mask-rcnn_fast-itpn-b_8xb8-12e_coco.py'

model = dict(backbone=dict(arch='large', drop_path_rate=0.2), neck=dict(in_channels=_base_.channels.large))
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.95))
