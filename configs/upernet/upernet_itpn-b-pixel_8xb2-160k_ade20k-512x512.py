# The authors' recipe for iTPN-B with pixel supervision.
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
        arch='base',
        drop_path_rate=0.1,
        layer_scale_init_value=None,
        relative_position='table',
        relative_window=32,
    ),
    neck=dict(kind='linear', depth=2),
)
