# Fast-iTPN's pre-training: AdamW, 1.5e-3 for 4096 images per step, 10 epochs of warm-up, cosine to 1e-5, clip 3.
epochs, warmup = 1600, 10

train_cfg = dict(by_epoch=True, max_epochs=epochs)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=3.0, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0), gamma=dict(decay_mult=0.0)),
    ),
)
warmup_lr = dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=warmup, convert_to_iter_based=True)
cosine_lr = dict(
    type='CosineAnnealingLR',
    T_max=epochs - warmup,
    eta_min=1e-5,
    by_epoch=True,
    begin=warmup,
    end=epochs,
    convert_to_iter_based=True,
)
param_scheduler = [warmup_lr, cosine_lr]
custom_hooks = [dict(type='mmitpn.ExportPretrainedHook')]

# The learning rate is for 4096 images per step; tools/train.py --auto-scale-lr fits it to another batch size.
auto_scale_lr = dict(enable=False, base_batch_size=4096)
