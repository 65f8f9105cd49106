# Reconstruction: the authors published this recipe for iTPN, not for Fast-iTPN.
_base_ = [
    '../_base_/models/upernet_fast-itpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/default_runtime_mmseg.py',
]

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.1),
    neck=dict(in_channels=(128, 256, 512)),
    decode_head=dict(in_channels=[384, 512, 768, 768]),
    auxiliary_head=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9))
