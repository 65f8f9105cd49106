# The quick start for instance segmentation: MaskDINO on a nano Fast-iTPN, trained on generated shapes on two CPU cores.
_base_ = [
    '../_base_/models/mask_dino_fast-itpn-nano.py',
    '../_base_/datasets/shapes_instance.py',
    '../_base_/schedules/quickstart_mask_dino.py',
]

train_dataloader = dict(sampler=dict(type='InfiniteSampler'), batch_sampler=None)
