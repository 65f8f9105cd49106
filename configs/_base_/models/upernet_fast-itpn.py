# UperNet on Fast-iTPN-B: the pyramid's maps at strides 4, 8, 16, 32, each followed by the backbone's map of that
# stride, as the authors of iTPN do; an auxiliary FCN head on stride 16.
# Another size: backbone.arch, neck.in_channels and the heads' in_channels.
_base_ = './itpn_channels.py'

# The pyramid's 256 channels and the backbone's at strides 4, 8, 16 and 32, the last pooled from stride 16.
head_channels = {arch: [256 + c for c in (*maps, maps[-1])] for arch, maps in _base_.channels.items()}
norm_cfg = dict(type='SyncBN', requires_grad=True)

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
        concat_backbone=True,
    ),
    decode_head=dict(
        type='UPerHead',
        in_channels=head_channels['base'],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=768,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=head_channels['base'][2],
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
