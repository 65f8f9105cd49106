# iTPN-S with CLIP supervision, a size that was not published: SmoothL1 to CLIP-B/16 on all patches, twice, 800 epochs.
_base_ = [
    '../_base_/models/pretrain_itpn-clip.py',
    '../_base_/datasets/imagenet_pretrain.py',
    '../_base_/schedules/pretrain_800e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(backbone=dict(arch='small'), neck=dict(in_channels=_base_.channels.small))
