# The authors' recipe for ImageNet-1K: Fast-iTPN-T at 224, 100 epochs. Paper: 85.1 % top-1.
_base_ = [
    '../_base_/models/classifier_fast-itpn.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_100e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(backbone=dict(arch='tiny', img_size=224), head=dict(in_channels=_base_.channels.tiny[-1]))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
