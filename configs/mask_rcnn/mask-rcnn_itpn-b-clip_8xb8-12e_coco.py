# The authors' 1x recipe for iTPN-B with CLIP supervision.
_base_ = [
    '../_base_/models/mask_rcnn_itpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_itpn_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.1, layer_scale_init_value=0.1, relative_position='decomposed'),
    neck=dict(in_channels=(128, 256, 512)),
)
