# The quick start's segmentor on 50 labeled images.
_base_ = '../../../configs/quickstart/upernet_fast-itpn-nano_shapes.py'

# Of each part either `init_cfg.checkpoint` or `init_cfg=None` is given on the command line.
model = dict(backbone=dict(pos_embed_init='sincos', layer_scale_init_value=1.0))
train_dataloader = dict(dataset=dict(indices=50))
max_iters, warmup, flat_until = 500, 15, 150
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
# No layer learns more slowly than another, whatever the initial weights.
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters // 2, max_keep_ckpts=1))
