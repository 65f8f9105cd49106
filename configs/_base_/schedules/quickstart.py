# The schedule of the quick start: minutes on two CPU cores. What the checkpoint knows is kept by a gentle layer decay.
# Clipping at 0.1, the usual value of DINO, would slow down the first thousand iterations.
# A config sets max_iters and param_scheduler: warmup_lr with its end, cosine_lr with begin, end and T_max.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1600, val_interval=800)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0, norm_type=2),
    constructor='mmitpn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.85),
)
warmup_lr = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0)
cosine_lr = dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False)
