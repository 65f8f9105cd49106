# The authors' recipe for ImageNet-1K: Fast-iTPN-L at 640, 20 epochs. Paper: 89.5 % top-1.
_base_ = [
    '../_base_/models/classifier_fast-itpn.py',
    '../_base_/datasets/imagenet_640.py',
    '../_base_/schedules/imagenet_20e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(
    backbone=dict(arch='large', img_size=640, drop_path_rate=0.2), head=dict(in_channels=_base_.channels.large[-1])
)
optim_wrapper = dict(optimizer=dict(lr=5e-5), paramwise_cfg=dict(decay_rate=0.95))
