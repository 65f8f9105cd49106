# The authors' recipe for ImageNet-1K: Fast-iTPN-S at 224, 100 epochs. Paper: 86.4 % top-1.
_base_ = [
    '../_base_/models/classifier_fast-itpn.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_100e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(backbone=dict(arch='small', img_size=224), head=dict(in_channels=_base_.channels.small[-1]))
