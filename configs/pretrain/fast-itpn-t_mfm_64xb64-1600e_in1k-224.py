# Reconstruction: Fast-iTPN-T by masked feature modeling with a moving-average teacher, as the paper describes it.
_base_ = [
    '../_base_/models/pretrain_fast-itpn.py',
    '../_base_/datasets/imagenet_pretrain.py',
    '../_base_/schedules/pretrain_1600e.py',
    '../_base_/default_runtime_mmpretrain.py',
]

model = dict(
    form='mfm',
    backbone=dict(arch='tiny'),
    neck=dict(in_channels=_base_.channels.tiny),
    teacher=dict(_delete_=True, type='mmitpn.MovingAverageTeacher'),
)
