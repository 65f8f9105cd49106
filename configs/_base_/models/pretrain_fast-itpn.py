# Fast-iTPN-T and its pyramid, pre-trained as published: CLIP-L/14's tokens at 196 pixels (14x14) for the student's 224.
# Another size: backbone.arch and neck.in_channels.
_base_ = './itpn_channels.py'

model = dict(
    type='mmitpn.ITPNPretrain',
    form='fast',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(type='mmitpn.FastITPN', arch='tiny', img_size=224, drop_path_rate=0.1, weight_init='xavier'),
    neck=dict(
        type='mmitpn.ITPNPyramid', in_channels=_base_.channels.tiny, out_channels=256, num_outs=3, weight_init='xavier'
    ),
    masking='pipeline',
    teacher=dict(type='mmitpn.ClipTeacher', weights='openai/clip-vit-large-patch14', channels=768),
)
