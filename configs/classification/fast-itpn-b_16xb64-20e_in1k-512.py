# The authors' recipe for ImageNet-1K: Fast-iTPN-B at 512, 20 epochs. Paper: 88.5 % top-1.
_base_ = [
    '../_base_/models/classifier_fast-itpn.py',
    '../_base_/datasets/imagenet_512.py',
    '../_base_/schedules/imagenet_20e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(backbone=dict(arch='base', img_size=512), head=dict(in_channels=_base_.channels.base[-1]))
