# How nano-shapes, the complete detector that comes with the package, was made: the quick start's with five times the
# images and three times the iterations.
#   mmitpn data shapes --out data/shapes-2000 --num-train 2000 --num-val 20 --seed 2000
#   mmitpn train dino_fast-itpn-nano_shapes-2000 --cfg-options randomness.seed=347452792
#   python tools/misc/publish_model.py work_dirs/dino_fast-itpn-nano_shapes-2000/iter_2800.pth nano-shapes.pth \
#     --dtype fp16
_base_ = './dino_fast-itpn-nano_shapes.py'

max_iters, warmup, flat_until = 2800, 27, 840

train_dataloader = dict(dataset=dict(data_root='data/shapes-2000/coco/'))
train_cfg = dict(max_iters=max_iters, val_interval=700)
param_scheduler = [
    dict(_base_.warmup_lr, end=warmup),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
default_hooks = dict(checkpoint=dict(interval=100))
