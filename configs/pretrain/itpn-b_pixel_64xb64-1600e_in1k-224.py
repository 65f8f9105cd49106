# iTPN-B with pixel supervision, as published: 75 % of the patches removed, normalized pixels, 1600 epochs.
_base_ = [
    '../_base_/models/pretrain_itpn-pixel.py',
    '../_base_/datasets/imagenet_pretrain.py',
    '../_base_/schedules/pretrain_pixel_1600e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(backbone=dict(arch='base'), neck=dict(in_channels=_base_.channels.base))
