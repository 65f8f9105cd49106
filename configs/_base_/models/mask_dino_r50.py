# MaskDINO on ResNet-50, as published: its maps at strides 4, 8, 16, 32 go into the head without a neck.
_base_ = './mask_dino_fast-itpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=None,
    panoptic_head=dict(in_channels=[256, 512, 1024, 2048]),
)
