# Fine-tuning of the trained segmentor with a token reduction switched on; depth_study.py gives load_from and setting.
_base_ = './seg_fast-itpn-nano12_shapes-256.py'

max_iters, warmup, flat_until = 400, 20, 120

model = dict(backbone=dict(init_cfg=None))
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
optim_wrapper = dict(optimizer=dict(lr=3e-4))
default_hooks = dict(checkpoint=dict(interval=200))
