# Reconstruction: iTPN's 1x recipe on Fast-iTPN.
_base_ = [
    '../_base_/models/mask_rcnn_itpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_itpn_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, type='mmitpn.FastITPN', arch='large', drop_path_rate=0.2),
    neck=dict(in_channels=(192, 384, 768), kind='fast'),
)
optim_wrapper = dict(optimizer=dict(lr=0.0001), paramwise_cfg=dict(decay_rate=0.95))
