# MaskDINO's published schedule on COCO: 368,750 iterations of 16 images (50 epochs), a tenth of the rate for the
# backbone, no decay of norms and embeddings. Published with mixed precision: tools/train.py --amp.
max_iters = 368750
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=36875)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1),
            level_embed=no_decay,
            label_embed=no_decay,
            query_content=no_decay,
            query_boxes=no_decay,
        ),
        norm_decay_mult=0.0,
    ),
)
warmup_lr = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=10)
step_lr = dict(type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, milestones=[327778, 355092], gamma=0.1)
param_scheduler = [warmup_lr, step_lr]

# The learning rate is for 8 GPUs with 2 images each; tools/train.py --auto-scale-lr fits it to another batch size.
auto_scale_lr = dict(enable=False, base_batch_size=16)
