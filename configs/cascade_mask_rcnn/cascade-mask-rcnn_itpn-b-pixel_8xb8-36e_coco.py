# The authors' 3x recipe for iTPN-B with pixel supervision.
_base_ = [
    '../_base_/models/cascade_mask_rcnn_itpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_itpn_3x.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(drop_path_rate=0.2))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
