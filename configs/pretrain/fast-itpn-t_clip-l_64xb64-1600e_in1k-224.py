# Fast-iTPN-T with its pyramid, pre-trained as published: cosine to CLIP-L/14 on masked patches, 1600 epochs.
_base_ = [
    '../_base_/models/pretrain_fast-itpn.py',
    '../_base_/datasets/imagenet_pretrain.py',
    '../_base_/schedules/pretrain_1600e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(backbone=dict(arch='tiny'), neck=dict(in_channels=_base_.channels.tiny))
