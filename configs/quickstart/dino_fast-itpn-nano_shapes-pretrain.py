# How the nano checkpoint of the quick start was made: the same detector from nothing, with more time and other images.
#   python tools/data/make_shapes.py --out data/shapes-pretrain --num-train 2000 --num-val 20 --seed 1000
#   python tools/train.py configs/quickstart/dino_fast-itpn-nano_shapes-pretrain.py
#   python tools/convert/convert_checkpoint.py work_dirs/dino_fast-itpn-nano_shapes-pretrain/iter_2600.pth \
#     configs/quickstart/fast-itpn-nano_shapes.pth --drop-heads --dtype fp16
_base_ = './dino_fast-itpn-nano_shapes.py'

max_iters, warmup, flat_until = 2600, 78, 1560

model = dict(backbone=dict(init_cfg=None), neck=dict(init_cfg=None))
train_dataloader = dict(dataset=dict(data_root='data/shapes-pretrain/coco/'))
train_cfg = dict(max_iters=max_iters, val_interval=650)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
# From nothing no layer is to learn more slowly than another.
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
default_hooks = dict(checkpoint=dict(interval=650))
