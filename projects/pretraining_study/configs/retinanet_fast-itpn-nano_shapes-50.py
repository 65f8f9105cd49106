# RetinaNet, a detector with a light head, on 50 labeled images of the quick start: what the pre-trained weights know
# decides, not 460 steps of a transformer. Strides 8, 16 and 32 of the pyramid; anchors of 16, 32 and 64 pixels.
_base_ = [
    '../../../configs/_base_/models/itpn_channels.py',
    '../../../configs/_base_/datasets/shapes_detection.py',
    '../../../configs/_base_/schedules/quickstart.py',
    '../../../configs/_base_/default_runtime.py',
]

width = 128
# Of each part either `init_cfg.checkpoint` or `init_cfg=None` is given on the command line.
pretrained = dict(
    type='Pretrained', checkpoint='{{ fileDirname }}/../../../configs/quickstart/fast-itpn-nano_shapes.pth'
)
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='mmitpn.FastITPN',
        arch='nano',
        img_size=128,
        weight_init='xavier',
        pos_embed_init='sincos',
        layer_scale_init_value=1.0,
        init_cfg=pretrained,
    ),
    neck=dict(
        type='mmitpn.ITPNPyramid',
        in_channels=_base_.channels.nano,
        out_channels=width,
        num_outs=3,
        start_level=1,
        weight_init='xavier',
        init_cfg=pretrained,
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=5,
        in_channels=width,
        stacked_convs=1,
        feat_channels=64,
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=2,
            scales_per_octave=2,
            ratios=[1.0],
            strides=[8, 16, 32],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        reg_decoded_bbox=True,
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=300, min_bbox_size=0, score_thr=0.02, nms=dict(type='nms', iou_threshold=0.5), max_per_img=50
    ),
)

train_dataloader = dict(dataset=dict(indices=50), sampler=dict(type='InfiniteSampler'), batch_sampler=None)
max_iters, warmup, flat_until = 500, 15, 150
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
# No layer learns more slowly than another, whatever the initial weights.
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 2, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
