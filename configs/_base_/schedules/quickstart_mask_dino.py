# The schedule of the quick start's MaskDINO: minutes on two CPU cores. See quickstart/dino_fast-itpn-nano_shapes.py.
_base_ = '../default_runtime.py'

max_iters = 1600

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0, norm_type=2),
    constructor='mmitpn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        decay_rate=0.85,
        custom_keys=dict(
            level_embed=dict(decay_mult=0.0),
            label_embed=dict(decay_mult=0.0),
            sampling_offsets=dict(decay_mult=0.0),
        ),
    ),
)
warmup = int(0.03 * max_iters)
flat_until = int(0.3 * max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(
        type='CosineAnnealingLR',
        eta_min=0,
        by_epoch=False,
        begin=flat_until,
        end=max_iters,
        T_max=max_iters - flat_until,
    ),
]

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 4, max_keep_ckpts=1))
log_processor = dict(by_epoch=False)
