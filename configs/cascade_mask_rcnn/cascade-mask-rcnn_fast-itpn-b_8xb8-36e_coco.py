# Reconstruction: iTPN's 3x recipe on Fast-iTPN.
_base_ = [
    '../_base_/models/cascade_mask_rcnn_itpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_itpn_3x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, type='mmitpn.FastITPN', arch='base', drop_path_rate=0.2),
    neck=dict(kind='fast'),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
