# The quick start: DINO on a nano Fast-iTPN, trained on generated shapes on two CPU cores in minutes.
_base_ = [
    '../_base_/models/dino_fast-itpn-nano.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/quickstart_dino.py',
]

train_dataloader = dict(sampler=dict(type='InfiniteSampler'), batch_sampler=None)

# The rate falls early: only the head is new.
max_iters, warmup, flat_until = 920, 27, 276
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 2)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
default_hooks = dict(checkpoint=dict(interval=max_iters // 4))
