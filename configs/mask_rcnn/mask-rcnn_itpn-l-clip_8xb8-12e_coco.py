# The authors' 1x recipe for iTPN-L with CLIP supervision.
_base_ = [
    '../_base_/models/mask_rcnn_itpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_itpn_1x.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, layer_scale_init_value=0.1, relative_position='decomposed'),
    neck=dict(in_channels=(192, 384, 768)),
)
optim_wrapper = dict(optimizer=dict(lr=0.0001), paramwise_cfg=dict(decay_rate=0.95))
