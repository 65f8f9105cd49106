# Reconstruction: the authors published this recipe for iTPN, not for Fast-iTPN.
_base_ = [
    '../_base_/models/upernet_fast-itpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/default_runtime_mmseg.py',
]

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2),
    neck=dict(in_channels=(192, 384, 768)),
    decode_head=dict(in_channels=[448, 640, 1024, 1024]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
