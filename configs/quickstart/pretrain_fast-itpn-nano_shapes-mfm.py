# Pre-training in small: a nano Fast-iTPN and its pyramid by masked feature modeling, on 8000 generated images without
# labels. projects/pretraining_study generates them elsewhere, trains this and fine-tunes from it. By itself:
#   mmitpn data shapes --out data/shapes-unlabelled --num-train 8000 --num-val 200 --seed 3000
_base_ = ['../_base_/models/itpn_channels.py', '../_base_/default_runtime_mmpretrain.py']

max_iters = 2400
width = 128
data_root = 'data/shapes-unlabelled/coco/train2017/'
# From random weights: positions differ from the first step, and so does what the blocks add.
start = dict(weight_init='xavier', pos_embed_init='sincos', layer_scale_init_value=1.0)

model = dict(
    type='mmitpn.ITPNPretrain',
    form='mfm',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(type='mmitpn.FastITPN', arch='nano', img_size=128, **start),
    neck=dict(
        type='mmitpn.ITPNPyramid',
        in_channels=_base_.channels.nano,
        out_channels=width,
        num_outs=3,
        weight_init='xavier',
    ),
    masking='random',
    mask_ratio=0.4,
    teacher=dict(type='mmitpn.MovingAverageTeacher', momentum=0.99),
)

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        with_label=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=128, crop_ratio_range=(0.4, 1.0), interpolation='bicubic'),
            dict(type='mmitpn.RandomTranspose', prob=0.5),
            dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
            dict(type='PackInputs', meta_keys=['img_path']),
        ],
    ),
)
train_cfg = dict(by_epoch=False, max_iters=max_iters)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=3.0, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0), gamma=dict(decay_mult=0.0)),
    ),
)
warmup = int(0.05 * max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=warmup, end=max_iters, T_max=max_iters - warmup),
]
custom_hooks = [dict(type='mmitpn.ExportPretrainedHook')]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=max_iters // 4, max_keep_ckpts=1), logger=dict(interval=50)
)
log_processor = dict(by_epoch=False)
