# Reconstruction: MaskDINO's published recipe of R50, on Fast-iTPN; the paper has no MaskDINO on COCO.
_base_ = [
    '../_base_/models/mask_dino_fast-itpn.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/schedule_mask_dino_itpn_50e.py',
    '../_base_/default_runtime.py',
]

default_hooks = dict(checkpoint=dict(by_epoch=False, interval=7375))
log_processor = dict(by_epoch=False)
