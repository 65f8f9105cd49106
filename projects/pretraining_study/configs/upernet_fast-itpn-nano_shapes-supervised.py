# Supervised pre-training, the ceiling of the study: the quick start's segmentor from random weights on the images that
# the other recipes see without labels, with as many steps and images.
_base_ = '../../../configs/quickstart/upernet_fast-itpn-nano_shapes.py'

model = dict(
    backbone=dict(init_cfg=None, pos_embed_init='sincos', layer_scale_init_value=1.0),
    neck=dict(init_cfg=None),
)
max_iters, warmup = 2400, 120
train_dataloader = dict(batch_size=16)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, begin=warmup, end=max_iters, T_max=max_iters - warmup),
]
# From nothing no layer is to learn more slowly than another.
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
default_hooks = dict(checkpoint=dict(interval=max_iters // 8))
