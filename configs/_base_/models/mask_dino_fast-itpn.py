# MaskDINO on Fast-iTPN-T: the pyramid's maps at strides 4, 8, 16, 32; the last three go into the encoder, which makes
# one coarser level itself. The published recipe of COCO instance segmentation (R50, 50 epochs, encoder FFN 2048, 4
# levels). Another size: backbone.arch and neck.in_channels.
_base_ = './itpn_channels.py'

model = dict(
    type='mmitpn.MaskDINO',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=True,
        seg_pad_value=255,
    ),
    backbone=dict(type='mmitpn.FastITPN', arch='tiny', drop_path_rate=0.1),
    neck=dict(
        type='mmitpn.ITPNPyramid',
        in_channels=_base_.channels.tiny,
        out_channels=256,
        num_outs=4,
        kind='fast',
        extra_pool='avg',
    ),
    panoptic_head=dict(
        type='mmitpn.MaskDINOHead',
        in_channels=[256, 256, 256, 256],
        strides=[4, 8, 16, 32],
        num_things_classes=80,
        num_stuff_classes=0,
        num_queries=300,
        box_start='mask2box',
        pixel_decoder=dict(num_inputs=3, num_levels=4, feedforward_channels=2048, order='low2high', with_cp=False),
        decoder=dict(num_layers=9, feedforward_channels=2048, with_cp=False),
        denoising=dict(kind='seg', num_queries=100, noise_scale=0.4),
    ),
    train_cfg=dict(num_points=12544, oversample_ratio=3.0, importance_sample_ratio=0.75),
    test_cfg=dict(instance_on=True, panoptic_on=False, semantic_on=False, max_per_image=100),
)
