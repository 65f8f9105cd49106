# The quick start's detector on a handful of photographs in COCO's layout, trained and evaluated on the same images
# until it overfits: this shows that the network can learn them, not how good it is.
#   python projects/token_reduction_study/compare_tokens.py --task photos --photos PHOTOS/
_base_ = [
    '../_base_/models/dino_fast-itpn-nano.py',
    '../_base_/datasets/photos_detection.py',
    '../_base_/schedules/quickstart_dino.py',
]

model = dict(num_queries=100, bbox_head=dict(num_classes=80), test_cfg=dict(max_per_img=100))

max_iters, flat_until = 1600, 800
train_cfg = dict(max_iters=max_iters, val_interval=400)
param_scheduler = [
    dict(_base_.warmup_lr, end=48),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
default_hooks = dict(checkpoint=dict(interval=400))
