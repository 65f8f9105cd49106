# A segmentor that is deep enough for token reduction, and small enough for two CPU cores: a Fast-iTPN of nano's width
# with 12 blocks in the main stage, at 256 pixels (16x16 tokens), with a light pyramid and head (depth_study.py). The
# backbone starts from the quick start's 4 blocks, grown to 12 by grow.py; pyramid and head start from random weights.
_base_ = [
    '../../../configs/_base_/models/itpn_channels.py',
    '../../../configs/_base_/datasets/shapes_segmentation.py',
    '../../../configs/_base_/schedules/quickstart.py',
    '../../../configs/_base_/default_runtime_mmseg.py',
]

width = 64
image_size = (256, 256)
data_root = 'data/shapes-256/ade/ADEChallengeData2016'
test_root = 'data/shapes-256-test/ade/ADEChallengeData2016'
norm_cfg = dict(type='GN', num_groups=8, requires_grad=True)

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=image_size,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='mmitpn.FastITPN',
        arch=dict(depths=(1, 1, 12), embed_dim=192, num_heads=3),
        img_size=256,
        weight_init='xavier',
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/token_depth/fast-itpn-nano12.pth'),
    ),
    neck=dict(
        type='mmitpn.ITPNPyramid',
        in_channels=_base_.channels.nano,
        out_channels=width,
        num_outs=3,
        weight_init='xavier',
    ),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[width] * 3,
        in_index=[0, 1, 2],
        channels=64,
        dropout_ratio=0.1,
        num_classes=9,
        norm_cfg=norm_cfg,
        align_corners=False,
        # As in the quick start: most pixels are textures, which are easy, so the shapes count for more.
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=[2.0] * 5 + [0.5] * 4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(data_root=test_root, pipeline=test_pipeline))  # other images than those of val

max_iters, warmup, flat_until = 2000, 60, 1200
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 2)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
# Copied blocks and a fresh pyramid: no layer is to learn more slowly than another.
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=250, max_keep_ckpts=1))
