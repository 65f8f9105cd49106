# The published recipe (R50, 160k): mIoU 48.7.
_base_ = [
    '../_base_/models/mask_dino_ade20k_fast-itpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/schedule_mask_dino_160k.py',
    '../_base_/default_runtime_mmseg.py',
]

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
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
)
