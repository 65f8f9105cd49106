# The authors' recipe for ImageNet-1K: Fast-iTPN-T at 384, 100 epochs. Paper: 86.2 % top-1.
_base_ = [
    '../_base_/models/classifier_fast-itpn.py',
    '../_base_/datasets/imagenet_384.py',
    '../_base_/schedules/imagenet_100e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(backbone=dict(arch='tiny', img_size=384), head=dict(in_channels=_base_.channels.tiny[-1]))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
