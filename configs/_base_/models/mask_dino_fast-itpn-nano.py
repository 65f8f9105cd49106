# MaskDINO on a nano Fast-iTPN, for the quick start's shapes at 128x128. Backbone and pyramid start from the detector's
# checkpoint, trained on other generated shapes.
_base_ = './mask_dino_fast-itpn.py'

width = 128
pretrained = dict(type='Pretrained', checkpoint='{{ fileDirname }}/../../quickstart/fast-itpn-nano_shapes.pth')

model = dict(
    data_preprocessor=dict(pad_size_divisor=1),
    backbone=dict(arch='nano', img_size=128, drop_path_rate=0.0, weight_init='xavier', init_cfg=pretrained),
    neck=dict(in_channels=_base_.channels.nano, out_channels=width, weight_init='xavier', init_cfg=pretrained),
    panoptic_head=dict(
        in_channels=[width] * 4,
        num_things_classes=5,
        feat_channels=width,
        out_channels=width,
        num_queries=40,
        pixel_decoder=dict(num_levels=3, num_layers=1, feedforward_channels=512),
        decoder=dict(num_layers=2, feedforward_channels=512),
        denoising=dict(num_queries=20),
    ),
    train_cfg=dict(num_points=1024),
    test_cfg=dict(max_per_image=40),
)
