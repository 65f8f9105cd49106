# iTPN-B and its pyramid with pixel supervision (MAE): three quarters of the patches are removed.
_base_ = './itpn_channels.py'

model = dict(
    type='mmitpn.ITPNPretrain',
    form='pixel',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(type='mmitpn.ITPN', arch='base', img_size=224),
    neck=dict(
        type='mmitpn.ITPNPyramid',
        in_channels=_base_.channels.base,
        out_channels=256,
        num_outs=3,
        kind='linear',
        depth=2,
    ),
    masking='random',
    mask_ratio=0.75,
)
