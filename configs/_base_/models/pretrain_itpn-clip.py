# iTPN-B and its pyramid with CLIP supervision: two SmoothL1 terms to the normed tokens of CLIP-B/16, all tokens.
_base_ = './itpn_channels.py'

model = dict(
    type='mmitpn.ITPNPretrain',
    form='clip',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        type='mmitpn.ITPN',
        arch='base',
        img_size=224,
        drop_path_rate=0.1,
        relative_position='table',
        layer_scale_init_value=0.1,
    ),
    neck=dict(type='mmitpn.ITPNPyramid', in_channels=_base_.channels.base, out_channels=256, num_outs=3, kind='linear'),
    masking='pipeline',
    teacher=dict(type='mmitpn.ClipTeacher', weights='openai/clip-vit-base-patch16', channels=512),
)
