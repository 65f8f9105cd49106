# The authors' recipe for iTPN-L with pixel supervision.
_base_ = [
    '../_base_/models/upernet_fast-itpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/default_runtime_mmseg.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmitpn.ITPN',
        arch='large',
        drop_path_rate=0.2,
        layer_scale_init_value=None,
        relative_position='table',
        relative_window=32,
    ),
    neck=dict(in_channels=(192, 384, 768), kind='linear', depth=2),
    decode_head=dict(in_channels=[448, 640, 1024, 1024]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95))
