# MaskDINO for ADE20K in mmseg, on Fast-iTPN-B: 100 learned queries, three levels, softmax over 150 classes and nothing.
_base_ = './itpn_channels.py'

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(type='mmitpn.FastITPN', arch='base', drop_path_rate=0.1),
    neck=dict(
        type='mmitpn.ITPNPyramid',
        in_channels=_base_.channels.base,
        out_channels=256,
        num_outs=4,
        kind='fast',
        extra_pool='max',
    ),
    decode_head=dict(
        type='mmitpn.MaskDINODecodeHead',
        in_channels=[256, 256, 256, 256],
        strides=[4, 8, 16, 32],
        num_classes=150,
        num_queries=100,
        pixel_decoder=dict(num_inputs=3, num_levels=3, feedforward_channels=1024, with_cp=False),
        decoder=dict(num_layers=9, feedforward_channels=2048, with_cp=False),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
