# A small budget, as FastMIM: Fast-iTPN-S learns histograms of gradients from images of 128 pixels, 100 epochs.
_base_ = [
    '../_base_/models/pretrain_fast-itpn.py',
    '../_base_/datasets/imagenet_pretrain_128.py',
    '../_base_/schedules/pretrain_100e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(
    form='hog',
    backbone=dict(arch='small', img_size=128),
    neck=dict(in_channels=_base_.channels.small),
    masking='random',
    mask_ratio=0.75,
    teacher=dict(_delete_=True, type='mmitpn.HogTeacher'),
)
