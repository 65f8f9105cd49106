# The published recipe (maskdino_R50_bs16_50ep_3s_dowsample1_2048): box AP 51.7, mask AP 46.3.
_base_ = [
    '../_base_/models/mask_dino_r50.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/schedule_mask_dino_50e.py',
    '../_base_/default_runtime.py',
]

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=7375))
log_processor = dict(by_epoch=False)
