# Reconstruction: the paper's DINO configs are unpublished. The strides 4, 8, 16, 32 come from the pre-trained pyramid.
_base_ = [
    '../_base_/models/dino_fast-itpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_12e.py',
    '../_base_/default_runtime.py',
]
