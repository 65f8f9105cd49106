# The quick start's MaskDINO on a handful of photographs in COCO's layout, trained and evaluated on the same images
# until it overfits: this shows that the network can learn masks of real objects, not how good it is.
#   python tools/train.py configs/quickstart/mask-dino_fast-itpn-nano_photos.py
_base_ = [
    '../_base_/models/mask_dino_fast-itpn-nano.py',
    '../_base_/datasets/photos_instance.py',
    '../_base_/schedules/quickstart_mask_dino.py',
]

model = dict(
    panoptic_head=dict(num_things_classes=80, num_queries=100, denoising=dict(num_queries=60)),
    train_cfg=dict(num_points=2048),
    test_cfg=dict(max_per_image=100),
)

max_iters, flat_until = 1500, 750
train_cfg = dict(max_iters=max_iters, val_interval=300)
param_scheduler = [
    dict(_base_.warmup_lr, end=48),
    dict(_base_.cosine_lr, begin=flat_until, end=max_iters, T_max=max_iters - flat_until),
]
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
default_hooks = dict(checkpoint=dict(interval=300))
