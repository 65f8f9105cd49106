# The authors' 1x recipe for iTPN-B with pixel supervision.
_base_ = [
    '../_base_/models/mask_rcnn_itpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_itpn_1x.py',
    '../_base_/default_runtime.py',
]
