# Reconstruction: MaskDINO's published recipe of R50, on Fast-iTPN; the paper has no MaskDINO on COCO.
_base_ = [
    '../_base_/models/mask_dino_fast-itpn.py',
    '../_base_/datasets/coco_panoptic_lsj.py',
    '../_base_/schedules/schedule_mask_dino_itpn_50e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    panoptic_head=dict(num_stuff_classes=53, box_start='no'),
    test_cfg=dict(instance_on=True, panoptic_on=True),
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=7375))
log_processor = dict(by_epoch=False)
