# The quick start for panoptic segmentation: MaskDINO on a nano Fast-iTPN; the textures behind the shapes are stuff.
_base_ = [
    '../_base_/models/mask_dino_fast-itpn-nano.py',
    '../_base_/datasets/shapes_panoptic.py',
    '../_base_/schedules/quickstart_mask_dino.py',
]

train_dataloader = dict(sampler=dict(type='InfiniteSampler'), batch_sampler=None)

model = dict(
    panoptic_head=dict(num_stuff_classes=4, box_start='no'),
    test_cfg=dict(instance_on=False, panoptic_on=True),
)
