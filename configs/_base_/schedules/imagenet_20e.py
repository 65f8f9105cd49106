# The authors' fine-tuning of B and L on ImageNet-1K: AdamW with layer decay, batch 1024, cosine to 1e-6, averaged
# weights (0.9999).
epochs, warmup = 20, 3

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmitpn.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9),
)
warmup_lr = dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True)
cosine_lr = dict(
    type='CosineAnnealingLR',
    T_max=epochs - warmup,
    eta_min=1e-6,
    by_epoch=True,
    begin=warmup,
    end=epochs,
    convert_to_iter_based=True,
)
param_scheduler = [warmup_lr, cosine_lr]
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]

# The learning rate is for 1024 images per step; tools/train.py --auto-scale-lr fits it to another batch size.
auto_scale_lr = dict(enable=False, base_batch_size=1024)
