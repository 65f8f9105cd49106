# Reconstruction: the authors published this recipe for iTPN, not for Fast-iTPN.
_base_ = [
    '../_base_/models/upernet_fast-itpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/default_runtime_mmseg.py',
]

model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.1),
    neck=dict(in_channels=(96, 192, 384)),
    decode_head=dict(in_channels=[352, 448, 640, 640]),
    auxiliary_head=dict(in_channels=640),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9))
