# How the starting weights of the segmentation quick start were made: the same segmentor from the detector's nano
# checkpoint, with more time and other images.
#   python tools/data/make_shapes.py --out data/shapes-pretrain --num-train 2000 --num-val 20 --seed 1000
#   python tools/train.py configs/quickstart/upernet_fast-itpn-nano_shapes-pretrain.py \
#     --cfg-options randomness.seed=0
#   python tools/convert/convert_checkpoint.py work_dirs/upernet_fast-itpn-nano_shapes-pretrain/iter_2400.pth \
#     configs/quickstart/fast-itpn-nano_shapes-seg.pth --drop-heads --dtype fp16
_base_ = './upernet_fast-itpn-nano_shapes.py'

max_iters, flat_until = 2400, 1440
pretrained = dict(type='Pretrained', checkpoint='{{ fileDirname }}/fast-itpn-nano_shapes.pth')

model = dict(backbone=dict(init_cfg=pretrained), neck=dict(init_cfg=pretrained))
train_dataloader = dict(dataset=dict(data_root='data/shapes-pretrain/ade/ADEChallengeData2016'))
train_cfg = dict(max_iters=max_iters, val_interval=400)
param_scheduler = [
    dict(_base_.warmup_lr, end=72),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
# What the detector's checkpoint knows is not what this one needs: no layer is to learn more slowly than another.
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
default_hooks = dict(checkpoint=dict(interval=400))
