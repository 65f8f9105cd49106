# iTPN's published 1x recipe on COCO: AdamW with layer decay, 12 epochs, steps at 9 and 11, batch 64.
# The warm-up of 500 steps is mmdet's.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmitpn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9),
)

warmup_lr = dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500)
step_lr = dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[9, 11], gamma=0.1)
param_scheduler = [warmup_lr, step_lr]

# The learning rate is for 8 GPUs with 8 images each; tools/train.py --auto-scale-lr fits it to another batch size.
auto_scale_lr = dict(enable=False, base_batch_size=64)
